"""What an empty notebook costs to run: papermill from the command line, its engines in a process, and a bare fork.

python bench/warm.py [--times 10]
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from papermill import execute_notebook
from results import write_results

from slml.display import text_table
from slml.execution import warm

EMPTY = nbformat.v4.new_notebook(
    cells=[nbformat.v4.new_code_cell("1")],
    metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
)


def bare_fork() -> None:
    """The least that a process of its own can cost."""
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def command_line(path: str, engine: str) -> None:
    """papermill as a shell calls it."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--engine", engine, path, f"{path}.out"]
    subprocess.run(command, check=True, capture_output=True)


def in_process(path: str, engine: str) -> None:
    """papermill as a program calls it that has loaded it already."""
    execute_notebook(path, f"{path}.out.ipynb", engine_name=engine, progress_bar=False)


def seconds(do: Callable[[], None], times: int) -> float:
    """How long it takes to do something so many times in a row."""
    begin = time.perf_counter()
    for _ in range(times):
        do()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    times = parser.parse_args().times
    logging.disable()
    begin = time.perf_counter()
    served = warm.ensure_warm_process(dict(os.environ), timeout=120)
    print(f"warm process: {'ready' if served else 'not to be had here'} after {time.perf_counter() - begin:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "empty.ipynb"))
        nbformat.write(EMPTY, path)
        ways = {
            "a bare fork of this process": bare_fork,
            "papermill, command line": lambda: command_line(path, "nbclient"),
            "papermill --engine slml, command line": lambda: command_line(path, "slml"),
            "papermill's engine, in a process": lambda: in_process(path, "nbclient"),
            "slml's engine, in a process": lambda: in_process(path, "slml"),
        }
        header = ("an empty notebook", "once, s", f"{times} in a row, s")
        lines = [[name, f"{seconds(do, 1):.2f}", f"{seconds(do, times):.2f}"] for name, do in ways.items()]
    write_results("warm", "Running an empty notebook", header, lines)
    print(text_table(header, lines))


if __name__ == "__main__":
    main()
