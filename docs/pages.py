"""The pages that are made from the project itself, for Sphinx: README, jobs, API reference, notebooks, benchmarks.

    python docs/pages.py FOLDER

Nothing here is written twice: signatures with the comments on their parameters come from the modules, prose and
examples from the notebooks, parameters of jobs from their declarations, figures from bench/results.
"""

import ast
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import nbformat
from nbconvert import MarkdownExporter

from slml.runs.parameters import REQUIRED, read_parameters

TOP = Path(__file__).resolve().parents[1]
SOURCE = "https://github.com/slml/slml/blob/main/"
# The order in which to read the packages.
LAYERS = [
    "errors", "implementations", "display", "notes", "workspace", "storage", "tables", "contract", "quality",
    "sampling", "features", "models", "training", "registry", "serving", "monitoring", "runs", "execution", "costs",
    "runners", "pipelines", "operations", "aws", "explore", "cli", "lab", "taxi",
]  # fmt: skip


def write(path: str, content: str | bytes) -> None:
    """A file of the site."""
    file = OUT / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def toctree(caption: str, pages: Sequence[str], hidden: bool = True) -> str:
    """The pages of a part, for the navigation; without `hidden`, a list on the page too."""
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden + [":maxdepth: 1"]
    return "\n".join(["```{toctree}", *options, "", *(page.removesuffix(".md") for page in pages), "```"])


# README and changelog


def readme() -> str:
    """The first page, and the changelog."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    for image in (TOP / "README_files").iterdir():
        write(f"README_files/{image.name}", image.read_bytes())
    write("changelog.md", (TOP / "CHANGELOG.md").read_text(encoding="utf-8"))
    return relink(text, PurePosixPath("index.md"))


def relink(text: str, page: PurePosixPath) -> str:
    """Links to files of the repository that are no pages go to the repository."""

    def target(match: re.Match) -> str:
        link = match[2]
        if re.match(r"[a-z]+:|#", link) or link.startswith("README_files/"):
            return match[0]
        plain = link.split("#")[0]
        for base in (TOP, TOP / "nbs" / page.parent.relative_to("notebooks") if page.parts[0] == "notebooks" else TOP):
            file = (base / plain).resolve()
            if file.is_file() or file.is_dir():
                inside = file.relative_to(TOP).as_posix()
                if inside.startswith("nbs/") and inside.endswith(".ipynb") and page.parts[0] == "notebooks":
                    return f"[{match[1]}]({plain.removesuffix('.ipynb')}.md)"
                return f"[{match[1]}]({SOURCE}{inside})"
        return match[0]

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", target, text)


# Notebooks


def notebooks() -> Iterator[tuple[str, str]]:  # package, page
    """One page for each notebook of a module, in the order of the layers."""
    exporter = MarkdownExporter()
    paths = [
        p for p in (TOP / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts and p.parent.name != "jobs"
    ]
    order = {name: number for number, name in enumerate(LAYERS)}
    key = lambda p: (order.get(package_of(p), 99), p.stem != "init", p.as_posix())  # noqa: E731
    for path in sorted(paths, key=key):
        inside = path.relative_to(TOP / "nbs").with_suffix("")
        if inside.as_posix() in ("index", "init"):
            continue
        notebook = nbformat.read(path, 4)
        notebook.cells = [cell for cell in notebook.cells if not re.match(r"#\s*\|\s*(hide|default_exp)", cell.source)]
        if not notebook.cells or not notebook.cells[0].source.startswith("# "):
            continue
        text, resources = exporter.from_notebook_node(notebook, {"unique_key": inside.name + "_files"})
        page = f"notebooks/{inside.as_posix()}.md"
        for name, data in resources["outputs"].items():
            write(f"notebooks/{inside.parent.as_posix()}/{name}", data)
        text = re.sub(r"(?m)^#\s*\|.*\n", "", text)
        text = re.sub(r"\n## Tests\n\s*$", "\n", text)
        write(page, relink(text, PurePosixPath(page)))
        yield package_of(path), page


def package_of(path: Path) -> str:
    return path.relative_to(TOP / "nbs").with_suffix("").parts[0]


# Jobs


def jobs() -> Iterator[str]:
    """A page for each job notebook: what it does, how to call it, what its parameters are."""
    for path in sorted((TOP / "nbs" / "jobs").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
        rows = ["| parameter | type | default | what it is |", "|---|---|---|---|"]
        for parameter in read_parameters(path).values():
            default = "required" if parameter.default is REQUIRED else f"`{parameter.default!r}`"
            rows.append(f"| `{parameter.name}` | {parameter.type} | {default} | {parameter.doc} |")
        call = f"```sh\nslml run {path.stem} -p ...\n```"
        text = "\n\n".join([prose[0], call, "\n".join(rows), "## The steps", *prose[1:]])
        write(f"jobs/{path.stem}.md", relink(text, PurePosixPath(f"jobs/{path.stem}.md")))
        yield f"jobs/{path.stem}.md"


# Reference


def reference() -> Iterator[str]:
    """A page for each package: its public names with their signatures and the comments on their parameters."""
    for package in LAYERS:
        files = sorted((TOP / "slml" / package).rglob("*.py")) or [TOP / "slml" / f"{package}.py"]
        parts = [f"# slml.{package}"]
        for file in files:
            if file.exists():
                parts += list(module_page(file))
        if len(parts) > 1:
            write(f"reference/{package}.md", "\n\n".join(parts) + "\n")
            yield f"reference/{package}.md"


def module_page(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    public = [node for node in tree.body if is_public(node)]
    if not public:
        return
    inside = file.relative_to(TOP).with_suffix("")
    yield f"## {'.'.join(inside.parts).removesuffix('.__init__')}"
    yield ast.get_docstring(tree) or ""
    for node in public:
        yield f"### {node.name}"
        yield f"```python\n{signature(node, lines)}\n```"
        yield ast.get_docstring(node) or ""


def is_public(node: ast.AST) -> bool:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return isinstance(node, kinds) and not node.name.startswith("_") and not any(map(is_overload, node.decorator_list))


def is_overload(decorator: ast.expr) -> bool:
    return getattr(decorator, "id", "") == "overload"


def signature(node: ast.AST, lines: list[str]) -> str:
    """The lines of a definition up to its docstring; of a class, its fields and the signatures of its methods too."""
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    if not isinstance(node, ast.ClassDef):
        return "\n".join(lines[start - 1 : node.body[0].lineno - 1] or [lines[start - 1]])
    parts = [*lines[start - 1 : node.lineno]]
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and not getattr(member.target, "id", "_").startswith("_"):
            parts += lines[member.lineno - 1 : member.end_lineno]
        elif is_public(member):
            parts += ["", signature(member, lines)]
            if docstring := ast.get_docstring(member):
                parts.append(" " * (member.col_offset + 4) + f'"{docstring}"')
    return "\n".join(parts)


# Benchmarks


def benchmarks() -> None:
    parts = [
        "# Benchmarks",
        "Made from `bench/results/`. Times depend on the machine, so compare within a table, not between them.",
    ]
    for path in sorted((TOP / "bench" / "results").glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        parts += [
            f"## {facts['title']}",
            f"{facts['machine']}; measured on {facts['measured']}. {facts['note']}".strip(),
        ]
        header, rows = facts["header"], facts["rows"]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]))
    write("benchmarks.md", "\n\n".join(parts) + "\n")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(TOP / "docs", OUT, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    benchmarks()
    guide = sorted(f"guide/{path.name}" for path in (TOP / "docs" / "guide").glob("*.md"))
    parts: dict[str, list[str]] = {}
    for package, page in notebooks():
        parts.setdefault(package, []).append(page.removeprefix("notebooks/"))
    for package, pages in parts.items():
        write(f"notebooks/{package}-index.md", f"# {package}\n\n{toctree('', pages, hidden=False)}\n")
    trees = [
        toctree("Guide", guide),
        toctree("Jobs", list(jobs())),
        toctree("API reference", list(reference())),
        toctree("The modules as notebooks", [f"notebooks/{package}-index" for package in parts]),
        toctree("More", ["benchmarks", "changelog"]),
    ]
    write("index.md", "\n\n".join([readme(), *trees]) + "\n")


if __name__ == "__main__":
    OUT = Path(sys.argv[1])
    main()
