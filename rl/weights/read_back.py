"""What engines compute with, compared with what was sent to them, while they sample and the trainer goes on.

Each reads its weights back, fused and packed as they are, and compares every tensor (`rollout.engine.readback`). Where
a tensor could not be found in the model, the replicas' checksums of the weights in the form that they compute with are
compared instead.

If an engine computes with something else, all are paused and the run ends. What was sampled meanwhile is dropped when
it is resumed, since its version is newer than the checkpoint's: no checkpoint is written before the comparison ends.
"""

from __future__ import annotations

from rewards.errors import listed
from rl.weights.compare import unlike
from rl.weights.publish import Engines, PublishError
from rollout.transfer.update import Findings


class ReadBack:
    """Makes engines compare `tensors` tensors, from now on. They must hold the version, and get no other before
    `finish`."""

    def __init__(self, version: int, engines: Engines, tensors: int, deadline_s: float) -> None:
        self._version, self._engines, self._tensors, self._deadline_s = version, engines, tensors, deadline_s
        self._started = engines.start("read_back")

    def finish(self) -> int:
        """Wait for the end. Returns how many tensors every engine was found to compute with; 0 where their checksums
        were compared instead.

        Raises:
            PublishError: an engine computes with something else than was sent, and all are paused; or one is gone, or
                has not answered in time.
        """
        try:
            findings: list[Findings | None] = self._engines.wait(self._started, self._deadline_s)
            whole = all(found is not None and found.same == self._tensors for found in findings)
            wrong = self._other_values(findings) or ([] if whole else self._other_checksums())
            if wrong:
                self._engines.wait(self._engines.start("pause"), self._deadline_s)
        except Exception as error:
            raise PublishError(
                f"weights version {self._version}: stage read_back failed (deadline {self._deadline_s:.0f} s): "
                f"{type(error).__name__}: {error}"
            ) from error
        if wrong:
            raise PublishError(f"weights version {self._version}: stage read_back failed: {'; '.join(wrong)}")
        return self._tensors if whole else 0

    def _other_values(self, findings: list[Findings | None]) -> list[str]:
        return [
            f"engine {number} computes with other values of {listed(found.differ)} than were sent"
            for number, found in zip(self._engines.numbers, findings, strict=True)
            if found is not None and found.differ
        ]

    def _other_checksums(self) -> list[str]:
        checksums = self._engines.wait(self._engines.start("checksums"), self._deadline_s)
        return unlike(checksums, self._engines.numbers)
