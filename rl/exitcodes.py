"""The exit codes of `./launch.sh`. A run that a signal ended exits with 128 + the number of that signal."""

from __future__ import annotations

DONE = 0
FAILED = 1
NOTHING_STARTED = 2
"""A bad recipe or usage, missing hardware or a missing tool, a run directory that cannot be used."""
STALLED = 75
"""EX_TEMPFAIL of sysexits.h: run it again with resume=auto."""
