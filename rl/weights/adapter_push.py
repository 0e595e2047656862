"""An adapter on its way to the engines: they get the base model once, then every version's adapter alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rl.weights.publish import Engines, PublishError, PublishReport, Source, publish, publish_adapter
from rl.weights.read_back import ReadBack
from rollout.transfer.config import WeightSyncConfig

if TYPE_CHECKING:
    from rollout.transfer.bucket import Follower, Member


class AdapterPusher:
    """One rank's part in the pushes of a run. All ranks call the same methods in the same order."""

    def __init__(
        self,
        base: Source,
        adapter: Source,
        sync: WeightSyncConfig,
        agreed: Callable[[bool], bool],
        *,
        resume: bool = True,
    ) -> None:
        """`agreed` returns rank 0's argument on every rank, and is a collective. `resume`: whether engines sample again
        as soon as they have the base model."""
        self._base, self._adapter, self._sync, self._agreed = base, adapter, sync, agreed
        self._resume = resume
        self._with_base: set[Member] = set()

    def push(
        self,
        version: int,
        engines: Engines | None,
        members: Sequence[Member],
        sender: Follower,
        verify: bool,
        base_hash: str,
    ) -> PublishReport | None:
        """Push the adapter as `version`, after the base model if one of the engines lacks it. `members` are the same on
        all ranks. Only rank 0 returns a report.

        Args:
            base_hash: the content hash of the base model that checkpoints of the adapter name.

        Raises:
            PublishError: on rank 0. The other ranks have then gone as far as rank 0, so the push may be repeated.
        """
        if not self._with_base.issuperset(members):
            failure = self._push_base(version, engines, sender, base_hash)
            arrived = self._agreed(failure is None)
            if failure is not None:
                raise failure
            if not arrived:
                return None
            self._with_base.update(members)
        return publish_adapter(self._adapter, version, self._sync, engines, sender, verify)

    def _push_base(
        self, version: int, engines: Engines | None, sender: Follower, base_hash: str
    ) -> PublishError | None:
        try:
            report = publish(self._base, version, self._sync, engines, sender, verify=True, resume=self._resume)
        except PublishError as error:
            return error
        if report is None or engines is None:
            return None
        if report.content != base_hash:
            return PublishError(f"the engines hold a base model of the content {report.content}, not {base_hash}")
        return self._other_base(version, engines, report)

    def _other_base(self, version: int, engines: Engines, report: PublishReport) -> PublishError | None:
        """Let engines read the base model back, before they get an adapter."""
        try:
            if report.readable:
                reading = ReadBack(version, engines, report.readable, self._sync.deadline_s(report.bytes))
                reading.finish(engines.numbers).check()
        except PublishError as error:
            return error
        return None
