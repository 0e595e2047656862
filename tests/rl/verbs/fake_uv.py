"""A uv that resolves from a table: `fake_uv.py pip compile … --output-file FILE`.

$RESOLUTIONS is a JSON file: {"EXTRA PYTHON MACHINE": pins or the text of a failure}, where "*" stands for every Python
or machine. The pins that the output file had before are kept in FILE.before.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import product
from pathlib import Path


def value_of(option: str) -> str:
    return sys.argv[sys.argv.index(option) + 1]


def main() -> None:
    table = json.loads(Path(os.environ["RESOLUTIONS"]).read_text(encoding="utf-8"))
    machine = value_of("--python-platform").partition("-")[0]
    places = product([value_of("--python-version"), "*"], [machine, "*"])
    keys = [f"{value_of('--extra')} {python} {machine}" for python, machine in places]
    resolved = next(table[key] for key in keys if key in table)
    if isinstance(resolved, str):
        sys.exit(resolved)
    output = Path(value_of("--output-file"))
    with Path(os.environ["RESOLUTIONS"]).with_suffix(".before").open("a", encoding="utf-8") as before:
        before.write(output.read_text(encoding="utf-8"))
    output.write_text("".join(f"{name}=={version}\n" for name, version in resolved.items()), encoding="utf-8")


if __name__ == "__main__":
    main()
