"""What several tests need: the repository's folder here, bundles, services and real months in modules of their own."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
