"""What pip installs: everything about the project is read from settings.ini, which nbdev reads too."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(name: str) -> list[str]:
    """The requirements listed under `name`, one a line."""
    return [line.strip() for line in settings.get(name, "").splitlines() if line.strip()]


class BuildWithJobs(build_py):
    """Copies the job notebooks and pipelines that ship into the package, which finds them in place in a clone."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            for notebook in sorted((here / "nbs" / "jobs").glob("*.ipynb")):
                self.copy_file(str(notebook), str(Path(self.build_lib, "slml", "jobs", notebook.name)))
            for name in ("table.yaml", "monitor.yaml"):
                self.copy_file(str(here / "pipelines" / name), str(Path(self.build_lib, "slml", "pipelines", name)))


readme = here / "README.md"

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    url=settings["git_url"],
    cmdclass={"build_py": BuildWithJobs},
    packages=find_packages(include=["slml", "slml.*"]),
    python_requires=f">={settings['min_python']}",
    install_requires=lines("requirements"),
    extras_require={
        name.removesuffix("_requirements"): lines(name) for name in settings if name.endswith("_requirements")
    },
    entry_points={
        "console_scripts": ["slml = slml.cli:main"],
        "papermill.engine": ["slml = slml.execution.warm_kernel:SlmlEngine"],
    },
    package_data={
        "slml": ["py.typed"],
        "slml.aws": ["Dockerfile"],
        "slml.pipelines": ["template/*", "template/*/*"],
        "slml.serving": ["page.html"],
    },
    zip_safe=False,
)
