"""The time of spans and timelines: as comparable between machines as their clocks, and never set back in a process."""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def now() -> float:
    """Seconds since 1970, by the machine's clock when this process began, and by an even clock since then."""
    return _OFFSET + time.monotonic()
