"""Ray shells around the learning side: one trainer rank, and the engines as rank 0 calls them.

The shell gives its process a log, joins torch.distributed and forwards to `rl.learner.learner` and
`rl.weights.publish`. Heavy imports happen inside the methods, after the environment of the process is set.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.actor import ActorHandle

from rl.batch.micro_batch import MicroBatch
from rl.batch.plan import GroupPlace, RankPlan, build
from rl.driver.placement import Seat
from rl.driver.specs import TrainerSpec, TrainingStage
from rl.driver.trained import TrainedRecord
from rl.launch.addresses import name_interface
from rl.losses.config import KlConfig
from rl.weights.adapter_push import AdapterPusher
from rl.weights.publish import PublishReport, publish
from rl.weights.read_back import ReadBack, ReadBackReport
from rollout.actors.process import EXACT_PINNED, enter_role, settling_in
from rollout.cards import samples_of
from rollout.ports import listen
from rollout.store.segments import read_group
from rollout.types import Sample

if TYPE_CHECKING:
    from rl.learner.learner import Seen
    from rl.zero.states import Part
    from rollout.transfer.bucket import Member

log = logging.getLogger(__name__)

FETCH_S = 30.0
"""How long a rank waits for a group from the object store before it reads the segment."""


class RayEngines:
    """Implements `rl.weights.publish.Engines` with actor handles, by the engines' numbers."""

    def __init__(self, engines: Mapping[int, ActorHandle]) -> None:
        self._engines = engines

    @property
    def numbers(self) -> list[int]:
        return list(self._engines)

    def only(self, number: int) -> RayEngines:
        return RayEngines({number: self._engines[number]})

    def start(self, method: str, *args: Any) -> list[Any]:
        return [engine.call.remote(method, *args) for engine in self._engines.values()]

    def done(self, started: list[Any]) -> bool:
        return not ray.wait(started, num_returns=len(started), timeout=0)[1]

    def wait(self, started: list[Any], timeout_s: float) -> list[Any]:
        try:
            return ray.get(started, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            silent = ray.wait(started, num_returns=len(started), timeout=0)[1]
        numbers = ", ".join(str(number) for number, one in zip(self._engines, started, strict=True) if one in silent)
        raise TimeoutError(
            f"no answer of engine {numbers} in {timeout_s:g} s: see its log; if it is only slow, raise "
            "weight_sync.timeout_s"
        )


class TrainerActor:
    """One trainer rank: a DeepSpeed engine shard, its optimizer and its RNG."""

    def __init__(self, role: str, logs_dir: str, rank: int, spec: TrainerSpec) -> None:
        enter_role(role, logs_dir, spec.trainer.cpu_threads)
        spec.folder.check(role)
        self._rank, self._spec = rank, spec
        self._listening: socket.socket | None = None
        self._store: Any = None
        self._stage: TrainingStage | None = None
        self._learner: Any = None
        self._sender: Any = None
        self._adapter_pusher: AdapterPusher | None = None
        self._read_back: ReadBack | None = None
        self._trained = TrainedRecord(spec.folder, spec.trajectories)

    def ping(self) -> None:
        """Return when this rank is idle."""

    def address(self) -> tuple[str, int]:
        """The address and the port at which this rank hosts the rendezvous of torch.distributed. It listens there from
        now on, and answers once `join` has imported torch."""
        own = ray.util.get_node_ip_address()
        self._listening = listen(own)
        return own, self._listening.getsockname()[1]

    def join(self, address: str, port: int) -> None:
        """Set the environment variables that torch.distributed reads, and do the slow imports."""
        os.environ.update(
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
            RANK=str(self._rank),
            WORLD_SIZE=str(self._spec.trainer.ranks),
            LOCAL_RANK="0",
            # Then rank 0's store is not opened by torch, which would listen on all addresses, but below.
            TORCHELASTIC_USE_AGENT_STORE="True",
            TORCHELASTIC_RESTART_COUNT="0",
        )
        name_interface(ray.util.get_node_ip_address())
        if self._spec.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        if self._spec.placement == "colocated":
            os.environ.setdefault("PYTORCH_ALLOC_CONF", EXACT_PINNED)
        with settling_in():
            import rl.learner.learner  # noqa: F401
            from rl.learner.process import open_store
        if self._listening is not None:
            self._store = open_store(self._listening, self._spec.trainer.timeout_s)

    def build(self, model_path: str, stage: TrainingStage) -> str | None:
        """Make a fresh learner for a stage, with the weights in `model_path` and a fresh optimizer. Returns what it
        trains, in words, if that is not everything."""
        from rl.learner.learner import Learner
        from rl.losses.objective import check_objective, make_objective

        self.close()
        self._stage = stage
        check_objective(make_objective(stage.objective, 0))
        self._learner = Learner(
            model_path=model_path,
            model_cfg=self._spec.model,
            trainer_cfg=self._spec.trainer,
            optimizer_cfg=stage.optimizer,
            seed=self._spec.seed,
            device=self._spec.device,
            lora=self._spec.lora,
        )
        described: str | None = self._learner.describe()
        return described

    def train(
        self, batches: Sequence[MicroBatch], lr: float, version: int, seen: Seen | None = None
    ) -> dict[str, float]:
        """Take one optimizer step of the stage. Returns the learner's statistics, the same on every rank, and this
        rank's `rss_mb`. `seen` is the learner's."""
        from rl.losses.objective import make_objective

        stage = self._stage
        assert stage is not None, "build comes first"
        objective = make_objective(stage.objective, version)
        prepared = batches if stage.objective.kl is None else self._prepared(batches, stage.objective.kl)
        stats: dict[str, float] = self._learner.train_step(list(prepared), objective, lr, seen)
        return stats | {"rss_mb": psutil.Process().memory_info().rss / 2**20}

    def _prepared(self, batches: Sequence[MicroBatch], kl: KlConfig) -> list[MicroBatch]:
        """Compute without gradient what the step needs of the reference policy. A collective."""
        from rl.losses.prepare import penalised, with_reference

        references = self._learner.reference_logprobs(batches)
        found = [with_reference(batch, logprobs) for batch, logprobs in zip(batches, references, strict=True)]
        return penalised(found, kl, self._learner.sums) if kl.place == "reward" else found

    def train_planned(self, part: RankPlan, lr: float, version: int) -> dict[str, float]:
        """Fetch the samples that this rank's part of a step names, `train` them, and record what was trained."""
        stats = self.train(build(part, self._fetch), lr, version, self._trained.seen)
        self._trained.write(part, version + 1)
        return stats

    def _fetch(self, place: GroupPlace) -> Sequence[Sample]:
        """The samples of a group: from Ray's object store while the worker that made them lives, else from disk."""
        if place.reference is not None:
            try:
                samples: Sequence[Sample] = ray.get(place.reference, timeout=FETCH_S)
                return samples
            except ray.exceptions.RayError as error:
                log.warning("%s: read from disk, because of %s", place.address, type(error).__name__)
        return samples_of(read_group(self._spec.folder.trajectories, place.address))

    def publish(self, version: int, handles: Mapping[int, ActorHandle], verify: bool) -> PublishReport | None:
        """Push the weights as `version` to these engines, by their numbers: all of them, or the adapter alone, before
        which an engine gets the base model once. All ranks call it; rank 0 sends and has the report. After a verified
        push `finish_read_back` comes before the next."""
        engines = RayEngines(handles) if self._rank == 0 else None
        members = tuple(self._member(number, handle) for number, handle in handles.items())
        if self._sender is None:
            self._sender = self._make_sender()
        self._sender.send_to(members)
        if self._spec.pushes_adapter:
            base = self._learner.base_hash()  # before anything can fail: all ranks take part
            return self._pusher().push(version, engines, members, self._sender, verify, base)
        sync, weights = self._spec.weight_sync, self._learner.weights
        report = publish(weights, version, sync, engines, self._sender, verify, resume=self._resumes)
        if report is not None and engines is not None and report.readable:
            self._read_back = ReadBack(version, engines, report.readable, sync.deadline_s(report.bytes))
        return report

    def finish_read_back(self, numbers: Sequence[int]) -> ReadBackReport:
        """Wait until those engines of the last push have read it back (`ReadBack`)."""
        reading, self._read_back = self._read_back, None
        assert reading is not None, "a verified push comes first"
        return reading.finish(numbers)

    def _member(self, number: int, handle: ActorHandle) -> Member:
        from rollout.transfer.bucket import Member

        return Member(replica=number, process=handle._actor_id.hex(), workers=self._spec.widths[number])

    @property
    def _resumes(self) -> bool:
        """Whether engines sample again as soon as they have been pushed to."""
        return self._spec.placement == "split"

    def _pusher(self) -> AdapterPusher:
        """The pusher of this learner's adapter."""
        if self._adapter_pusher is None:
            learner = self._learner
            sync, agreed = self._spec.weight_sync, learner.from_first_rank
            self._adapter_pusher = AdapterPusher(learner.base, learner.adapter, sync, agreed, resume=self._resumes)
        return self._adapter_pusher

    def _make_sender(self) -> Any:
        """This rank's end of the transport."""
        from rollout.transfer.bucket import SenderPlace
        from rollout.transfer.registry import make_transport

        place = SenderPlace(
            run_id=self._spec.folder.run_id,
            device=self._spec.device,
            address=ray.util.get_node_ip_address(),
            sync=self._spec.weight_sync,
        )
        transport = make_transport(self._spec.transport)
        return transport.sender(place) if self._rank == 0 else transport.follower(place)

    def seat(self) -> Seat:
        """This rank's machine and GPU."""
        return Seat(node=ray.get_runtime_context().get_node_id(), gpu=os.environ.get("CUDA_VISIBLE_DEVICES", ""))

    def offload(self, part: Part) -> float:
        """Move a part of the states to the host. Returns the MiB that are left on the GPU."""
        left: int = self._learner.offload(part)
        return left / 2**20

    def reload(self) -> None:
        """Bring all states back to the device."""
        self._learner.reload()

    def save(self, directory: str) -> None:
        self._learner.save(directory)

    def load(self, directory: str) -> None:
        self._learner.load(directory)

    def export(self, directory: str) -> None:
        """Write the model, with an adapter merged into it."""
        self._learner.export_hf(directory)

    def export_adapter(self, directory: str) -> None:
        self._learner.export_adapter(directory)

    def seal(self) -> None:
        """Finish the file of trained tokens. Later ones begin another."""
        self._trained.close()

    def close(self) -> None:
        if self._learner is not None:
            self._learner.close()
            self._learner = self._adapter_pusher = None
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._trained.close()
