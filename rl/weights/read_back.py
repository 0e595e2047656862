"""What engines compute with, compared with what was sent to them, while they sample and the trainer goes on.

Each reads its weights back, fused and packed as they are, and compares every tensor (`rollout.engine.readback`). Where
a tensor could not be found in the model, the replicas' checksums of the weights in the form that they compute with are
compared instead.

If an engine computes with something else, all are paused and the run ends. What was sampled meanwhile is dropped when
it is resumed, since its version is newer than the checkpoint's: the comparison ends before a checkpoint is written, and
before an engine, or a run, begins with a version that a checkpoint may have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.errors import listed
from rl.weights.compare import unlike
from rl.weights.publish import Engines, PublishError
from rollout.transfer.update import Findings


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBackReport:
    """How many tensors every engine was found to compute with; 0 where their checksums were compared instead. `failed`
    says by the number of each engine that has compared nothing why, for instance because it died."""

    read: int
    failed: Mapping[int, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise PublishError if an engine has failed."""
        if self.failed:
            raise PublishError("; ".join(self.failed.values()))


class ReadBack:
    """Makes engines compare `tensors` tensors, from now on. They must hold the version, and get no other before
    `finish`."""

    def __init__(self, version: int, engines: Engines, tensors: int, deadline_s: float) -> None:
        self._version, self._engines, self._tensors, self._deadline_s = version, engines, tensors, deadline_s
        self._started = {number: engines.only(number).start("read_back") for number in engines.numbers}
        self._failed: dict[int, str] = {}

    def finish(self, numbers: Iterable[int]) -> ReadBackReport:
        """Wait for the end in those engines, and leave others out.

        Raises:
            PublishError: an engine computes with something else than was sent. All of them have been paused.
        """
        findings: dict[int, Findings | None] = self._answers(numbers, self._started)
        wrong = [
            f"engine {number} computes with other values of {listed(found.differ)} than were sent"
            for number, found in findings.items()
            if found is not None and found.differ
        ]
        whole = all(found is not None and found.same == self._tensors for found in findings.values())
        if not whole and not wrong:
            checksums = self._answers(findings, self._start(findings, "checksums"))
            wrong = unlike([*checksums.values()], [*checksums])
        if wrong:
            self._answers(findings, self._start(findings, "pause"))
            raise PublishError(f"weights version {self._version}: stage read_back failed: {'; '.join(wrong)}")
        return ReadBackReport(read=self._tensors if whole else 0, failed=self._failed)

    def _start(self, numbers: Iterable[int], method: str) -> dict[int, Any]:
        return {number: self._engines.only(number).start(method) for number in numbers}

    def _answers(self, numbers: Iterable[int], started: Mapping[int, Any]) -> dict[int, Any]:
        """What each has answered, without those that failed."""
        found = {}
        for number in numbers:
            try:
                (found[number],) = self._engines.only(number).wait(started[number], self._deadline_s)
            except Exception as error:
                self._failed[number] = (
                    f"weights version {self._version}: stage read_back failed in engine {number} (deadline "
                    f"{self._deadline_s:.0f} s): {type(error).__name__}: {error}"
                )
        return found
