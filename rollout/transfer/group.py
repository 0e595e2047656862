"""Weight buckets broadcast in a group of rank 0 and all engines: what nccl and gloo share.

Both sides of a broadcast must run at once, so `send` starts it on a thread and returns the description that makes the
engines receive. Rank 0 waits for the engines' answers with a deadline, and never in the broadcast itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Protocol

import torch

from rollout.transfer.bucket import Bucket, Member, Sender, SenderPlace, Tensors, describe
from rollout.types import WeightSpec


class Group(Protocol):
    """Rank 0's end of an open group."""

    def broadcast(self, bucket: Tensors) -> None:
        """Block until every engine has received the bucket."""
        ...

    def leave(self) -> None:
        """Leave the group, which also ends a broadcast that hangs. Idempotent; any thread may call it."""
        ...


class Meeting:
    """Where a group meets."""

    def open(self) -> Group:
        """Wait for the engines, and join them."""
        raise NotImplementedError

    def describe(self, sequence: int, specs: Sequence[WeightSpec], digests: tuple[str, ...]) -> Bucket:
        """Return the description of a bucket that is broadcast there."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what was not used, because the group never opened. Idempotent."""


class GroupSender(Sender):
    """Rank 0 of a group with every engine. The first bucket opens it; a failed push, or other engines, replace it.

    After a broadcast that some engine did not take part in, no later broadcast can use the group. So `abandon` leaves
    it, and the next bucket names another rendezvous, where the engines join anew.
    """

    def __init__(self, place: SenderPlace) -> None:
        self._place = place
        self._engines: tuple[Member, ...] = ()
        self._membership: _Membership | None = None
        self._prepared: Tensors | None = None
        self._running: deque[Future[None]] = deque()
        self._deadline_s = 0.0
        self._sequence = 0

    def meet(self, engines: tuple[Member, ...]) -> Meeting:
        """Make a new meeting place for rank 0 and these engines."""
        raise NotImplementedError

    def send_to(self, engines: tuple[Member, ...]) -> None:
        if engines != self._engines:
            self._leave()
            self._engines = engines

    def own(self, bucket: Tensors) -> Tensors:
        """Copy the tensors: they are valid only until the source gathers the next bucket, which it does meanwhile."""
        own = [(name, tensor.detach().clone()) for name, tensor in bucket]
        if torch.cuda.is_available():
            # The copies must be complete before the broadcast's own stream reads them.
            torch.cuda.current_stream().synchronize()
        return own

    def prepare(self, bucket: Tensors, verify: bool) -> tuple[str, ...]:
        self._prepared = self.own(bucket)
        return super().prepare(bucket, verify)

    def send(self, bucket: Tensors, digests: tuple[str, ...] = ()) -> Bucket:
        """Have the bucket broadcast after those before it. The last of which every engine has it must have ended.

        Raises:
            RuntimeError: that one did not end in time.
        """
        own = self._prepared or self.own(bucket)
        self._prepared = None
        self._finish()
        if self._membership is None:
            self._membership = _Membership(self.meet(self._engines))
        self._running.append(self._membership.broadcast(own))
        specs = [describe(name, tensor) for name, tensor in bucket]
        sent = self._membership.meeting.describe(self._sequence, specs, digests)
        self._deadline_s = self._place.sync.deadline_s(sum(spec.nbytes for spec in specs))
        self._sequence += 1
        return sent

    def abandon(self) -> Exception | None:
        """Leave the group, whatever it is doing; the next bucket opens another one.

        Return the exception of the last broadcast if that has failed.
        """
        failed = [sent.exception() for sent in self._running if sent.done() and not sent.cancelled()]
        self._leave()
        return next((error for error in failed if isinstance(error, Exception)), None)

    def close(self) -> None:
        """Leave the group, without waiting for engines that are gone. Idempotent."""
        self._leave()

    def _leave(self) -> None:
        if self._membership is not None:
            self._membership.leave()
        self._membership, self._prepared = None, None
        self._running.clear()

    def _finish(self) -> None:
        """Wait for the end of the broadcasts of which every engine has the bucket. That does not take long."""
        while len(self._running) >= self.ahead:
            try:
                self._running[0].result(self._deadline_s)
            except FutureTimeoutError as error:
                raise RuntimeError(
                    f"the broadcast of weight bucket {self._sequence - len(self._running)} did not end in "
                    f"{self._deadline_s:.0f} s, though every engine has it: see the trainer's log"
                ) from error
            self._running.popleft()


class _Membership:
    """One group and the only thread that uses it. `leave` ends both, even while the group is still opening."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self._group: Group | None = None
        self._left = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights")

    def broadcast(self, bucket: Tensors) -> Future[None]:
        return self._worker.submit(self._run, bucket)

    def leave(self) -> None:
        self._left = True
        self._worker.shutdown(wait=False, cancel_futures=True)
        self.meeting.close()
        if self._group is not None:
            self._group.leave()

    def _run(self, bucket: Tensors) -> None:
        if self._group is None:
            self._group = self.meeting.open()
        # `leave` may be called while the group opens. Then whichever comes later, `leave` or this, leaves the group.
        if self._left:
            self._group.leave()
        else:
            self._group.broadcast(bucket)
