"""`report`: one page about a run, or about two beside each other, for a browser.

./launch.sh report RUN [OTHER] [out=FILE] [limit_mb=200]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rl.report.page import write_report
from rl.verbs.usage import refuse

NAME = "report.html"
LIMIT_MB = 200.0
"""The packed trajectories of a page may have so many megabytes; above that it holds a sample of them."""
_OPTIONS = ("out", "limit_mb")


def report(argv: Sequence[str]) -> int:
    """Write the page and say what it holds. `argv` is the runs' directories and options."""
    options = dict(argument.split("=", 1) for argument in argv if argument.split("=", 1)[0] in _OPTIONS)
    runs = [Path(argument) for argument in argv if argument.split("=", 1)[0] not in _OPTIONS]
    if not 1 <= len(runs) <= 2:
        return refuse("report needs a run, or two: ./launch.sh report RUN [OTHER] [out=FILE] [limit_mb=200]")
    try:
        limit = float(options.get("limit_mb", LIMIT_MB))
    except ValueError:
        limit = 0.0
    if not limit > 0:
        return refuse(f"limit_mb={options['limit_mb']!r}: give a number of megabytes above 0")
    target = Path(options["out"]) if "out" in options else runs[0] / NAME
    began = time.monotonic()
    try:
        held = write_report(runs, target, limit * 1e6)
    except ValueError as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(f"{target} cannot be written: {error.strerror or error}; name another file with out=FILE")
    for one in held:
        if one.groups < one.total:
            print(f"{one.run}: {one.groups} of {one.total} groups, at even distances; raise limit_mb to have more")
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, written in {time.monotonic() - began:.1f} s; open it in a browser")
    return 0
