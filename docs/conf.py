"""Sphinx: pages in Markdown, made by docs/pages.py; light and dark, readable on a telephone."""

project = "slml"
author = "The slml authors"
copyright = "2026 onwards, the slml authors"
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
html_theme = "furo"
html_title = "slml"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_theme_options = {"light_css_variables": {"color-brand-primary": "#0f5c66", "color-brand-content": "#0f5c66"}}
