"""What `spequant study` writes, and the shortest of its runs."""

import csv
from pathlib import Path

from spequant.app.cli import main

SMALL = ("--recipe", "digits-w2a2-speq")
"""for a study: ResNet-8 in place of ResNet-20"""


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def smoke(name: str, out: Path, *options: str) -> list[dict[str, str]]:
    """Rows of study `name` on a few made-up images, all of its files written."""
    main(["study", name, "--smoke", "--out", str(out), *options])
    assert all((out / f"{name}.{kind}").stat().st_size > 0 for kind in ("csv", "md", "png", "html"))
    return rows_of(out, name)
