"""mypy over the package, and its errors held against the baseline: no package may have more than it had.

`python tests/house/check_types.py` fails where a package has more errors than the baseline allows, and prints them.
`python tests/house/check_types.py --lower` writes the counts down where they have become fewer; it never raises one.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BASELINE = Path(__file__).with_name("mypy-baseline.txt")


def package_of(line: str) -> str:
    """`tables` for an error in slml/tables/catalog.py, `storage` for one in slml/storage.py."""
    return Path(line.partition(":")[0]).parts[1].removesuffix(".py")


def read_baseline() -> Counter[str]:
    """The errors that each package may have; one that is not listed has none."""
    rows = (line.split() for line in BASELINE.read_text().splitlines() if line and not line.startswith("#"))
    return Counter({name: int(count) for name, count in rows})


def find_errors() -> list[str]:
    """The errors of mypy, one a line. Ends the process where mypy itself fails."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(done.stdout + done.stderr)
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def main(lower: bool) -> int:
    """Compare, and say what to do."""
    errors, allowed = find_errors(), read_baseline()
    counts = Counter(map(package_of, errors))
    worse = sorted(name for name in counts if counts[name] > allowed[name])
    fewer = sorted(name for name in allowed if counts[name] < allowed[name])
    for name in worse:
        print(*(line for line in errors if package_of(line) == name), sep="\n")
        print(f"{name}: {counts[name]} type errors, {allowed[name]} allowed\n")
    if lower:
        comments = [line for line in BASELINE.read_text().splitlines() if line.startswith("#")]
        kept = {name: min(count, counts[name]) for name, count in allowed.items()}
        rows = [f"{name} {count}" for name, count in sorted(kept.items()) if count]
        BASELINE.write_text("\n".join([*comments, *rows]) + "\n")
    elif fewer:
        print(f"Fewer errors in {', '.join(fewer)}: write that down with `make types-lower`.")
    print(f"{len(errors)} type errors, {sum(allowed.values())} allowed")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main("--lower" in sys.argv[1:]))
