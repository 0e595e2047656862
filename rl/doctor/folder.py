"""Whether the machines of a run share its directory: a file that the driver writes, and one from each of them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rl.doctor.finding import Finding
from rl.doctor.machines import everywhere

NONCE = "nonce"
LEAST_BYTES = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a machine sees of the folder: why it is not the driver's, or None; why it cannot write there, or None; the
    free bytes there; and whether it notices a lock that the driver holds."""

    alien: str | None = None
    unwritable: str | None = None
    free: int = 0
    locks: bool = False


def parent_of(directory: str | None) -> Path:
    """The nearest folder that exists at or above a run directory; null is below `runs`."""
    path = Path(directory or "runs").absolute()
    while not path.is_dir():
        path = path.parent
    return path


@contextmanager
def marked(parent: Path, nonce: str) -> Iterator[Path]:
    """A folder in `parent` with the nonce in it, and a lock on that; gone afterwards.

    Raises:
        OSError: it cannot be made.
    """
    folder = parent / f".sluice-doctor-{nonce}"
    folder.mkdir()
    try:
        with (folder / NONCE).open("w", encoding="utf-8") as file:
            file.write(nonce)
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def look(folder: Path, nonce: str, own: str) -> Seen:
    """Look at the folder from another machine, or from this one, and leave the file `own` there."""
    try:
        with (folder / NONCE).open(encoding="utf-8") as file:
            if file.read() != nonce:
                return Seen(alien="its content is another")
            locks = _is_locked(file.fileno())
    except OSError as error:
        return Seen(alien=error.strerror or str(error))
    try:
        temporary = folder / f"{own}.partial"
        with temporary.open("w", encoding="utf-8") as written:
            written.write(own)
            written.flush()
            os.fsync(written.fileno())
        temporary.rename(folder / own)
    except OSError as error:
        return Seen(unwritable=error.strerror or str(error))
    return Seen(free=shutil.disk_usage(folder).free, locks=locks)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def judge(parent: Path, folder: Path, seen: Mapping[str, Seen]) -> Finding:
    """The finding. `seen` is by machine; each has left a file of that name."""
    arrived = set(os.listdir(folder))
    wrong = [
        f"{machine} does not see {parent} as it is here ({one.alien})" for machine, one in seen.items() if one.alien
    ]
    wrong += [
        f"{machine} cannot write to {parent}: {one.unwritable}" for machine, one in seen.items() if one.unwritable
    ]
    fine = {machine: one for machine, one in seen.items() if not one.alien and not one.unwritable}
    wrong += [f"what {machine} writes to {parent} is not seen here" for machine in fine if machine not in arrived]
    if wrong:
        fix = "set run.dir to a path that all machines of the run share and may write to"
        return Finding("run.dir", False, f"{'; '.join(wrong)}: {fix}")
    free = min((one.free for one in fine.values()), default=0)
    if free < LEAST_BYTES:
        return Finding("run.dir", False, f"{free / 1e9:.1f} GB free in {parent}: free some space, or set run.dir")
    blind = [machine for machine, one in fine.items() if not one.locks]
    told = f"; {', '.join(blind)} sees no lock of another machine, so two runs in one directory go unnoticed"
    return Finding(
        "run.dir",
        True,
        f"{parent} is shared and writable{everywhere(seen)}, {free / 1e9:.0f} GB free" + (told if blind else ""),
    )
