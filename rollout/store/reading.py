"""A run's finished groups for people: from sealed and growing segments alike, with the step that trained each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rollout.store import eventlog, segments
from rollout.types import Address, Group, Split

FOLDER = "trajectories"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A group as it lies in the store. `step` is the optimizer step that trained it, counted from 1; None where no step
    did, or where the step went with weights that were lost. Groups of the split `eval` are never trained."""

    group: Group
    split: Split
    step: int | None
    address: Address


def read(run_dir: str | Path) -> Iterator[Stored]:
    """Yield every finished group of a run that its directory still holds, file by file in the order of writing.

    The run may be going on. A group that a resumed run trained again has the step that counts. What cannot be read is
    left out, with a warning.

    Raises:
        ValueError: there is no such run, or the ledger's log is damaged.
    """
    folder, log = Path(run_dir) / FOLDER, Path(run_dir) / eventlog.NAME
    if not folder.is_dir():
        raise ValueError(f"{run_dir} is no run directory: it has no folder {FOLDER!r}")
    steps = trained_steps(log)
    for number, path in segments.paths(folder).items():
        for record, group, split in _groups(path):
            address = Address(segment=number, record=record)
            yield Stored(group=group, split=split, step=steps.get(address), address=address)


def _groups(path: Path) -> Iterator[tuple[int, Group, Split]]:
    """The groups of a segment, which may have been sealed, or deleted to save space, since `path` was found."""
    sealed = path.with_suffix(segments.SEALED)
    for form in (path, sealed) if path != sealed else (sealed,):
        if form.exists():
            yield from segments.groups(form)
            return


def trained_steps(log: Path) -> dict[Address, int]:
    """The optimizer step that trained the group at each address, by the events that hold.

    Raises:
        ValueError: the log is damaged.
    """
    addresses: dict[str, Address] = {}
    steps: dict[Address, int] = {}
    for event in eventlog.read_events(log):
        if event["event"] == "finished":
            addresses[event["id"]] = Address(segment=event["address"][0], record=event["address"][1])
        elif event["event"] == "trained":
            if lacking := [issue_id for issue_id in event["ids"] if issue_id not in addresses]:
                raise ValueError(f"{log}: damaged: it has no `finished` of {', '.join(lacking)}, which were trained")
            steps |= {addresses[issue_id]: event["step"] for issue_id in event["ids"]}
    return steps
