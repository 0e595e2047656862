"""From a real worker over the real buffer to a rank, with real Ray and a scripted engine: what travels, and how."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rl.batch.plan import GroupPlace, plan
from rl.driver.cluster import Cluster
from rl.driver.placement import Place
from rl.driver.specs import buffer_spec, trainer_spec, worker_spec
from rl.driver.trainer import TrainerActor
from rl.recipe.load import load_recipe
from rl.rundir.directory import RunDir
from rollout.actors.engine import ENGINE_CONCURRENCY_GROUPS, InferenceActor
from rollout.cards import Card
from rollout.store import read
from rollout.store.shared import RunFolder
from rollout.types import Completion, Sample, SamplingParams
from tests.rl.batch.test_plan import rows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
GROUPS = 2


class TalkativeEngine:
    """Samples random tokens until the limit, at version 0."""

    version, paused_s = 0, 0.0

    async def generate(self, request_id: str, prompt: Any, sampling: SamplingParams) -> Completion:
        random = np.random.default_rng(sampling.seed)
        tokens = random.integers(0, 300, sampling.max_tokens).tolist()
        logprobs = (-random.random(sampling.max_tokens)).tolist()
        return Completion(
            token_ids=tuple(tokens),
            logprobs=tuple(logprobs),
            versions=(0,) * sampling.max_tokens,
            finish_reason="length",
        )


class TalkativeInference(InferenceActor):
    def __init__(self, role: str, logs_dir: str) -> None:
        super().__init__(role, logs_dir, 1, 0)
        self._engine = TalkativeEngine()


class Fetching(TrainerActor):
    """A trainer rank that shows what it fetches."""

    def fetch(self, place: GroupPlace) -> list[Sample]:
        return list(self._fetch(place))


class Rollout:
    """One worker and the buffer at work in a run directory, until they have finished the groups of one step."""

    def __init__(self, directory: Path, tokens: int) -> None:
        model = directory.with_name("model")  # the quickstart's, with longer contexts
        shutil.copytree("recipes/models/tiny-glm4-moe", model)
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": tokens}), encoding="utf-8")
        overrides = ("rollout.group_size=4", "rollout.groups_per_worker=2", "tasks.sources=[{environment: store}]")
        self.recipe = load_recipe(
            "recipes/quickstart.yaml",
            [
                *overrides,
                f"model.path={model}",
                f"trainer.groups_per_step={GROUPS}",
                f"rollout.max_context={tokens}",
                f"rollout.sampling.max_tokens={tokens - 64}",
                f"trainer.token_budget={4 * tokens}",
            ],
        )
        self.directory = RunDir.open(directory, resume="never", run_id="r1")
        self.folder = RunFolder(path=str(directory), run_id="r1")
        self.cluster = Cluster(directory / "logs", "test")
        engine = self.cluster.spawn(TalkativeInference, "engine-0", Place(), groups=ENGINE_CONCURRENCY_GROUPS)
        self.buffer = self.cluster.start_buffer(buffer_spec(self.recipe), self.folder, None)
        self.cluster.start_workers(worker_spec(self.recipe, self.folder), {0: engine}, self.buffer)
        self.ask(self.buffer, "published", 0)
        self.cluster.calls.watch(self.cluster.workers, "run")

    def ask(self, actor: Any, method: str, *arguments: Any) -> Any:
        return self.cluster.calls.ask(actor, method, *arguments, what=method)

    def take(self) -> list[Card]:
        while (answer := self.ask(self.buffer, "take", 0, 5.0)).cards is None:
            pass
        return list(answer.cards)


@pytest.fixture(scope="module")
def rollouts(ray_instance: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Rollout]]:
    made = {tokens: Rollout(tmp_path_factory.mktemp("run") / "run", tokens) for tokens in (1024, 16_384)}
    yield made
    for rollout in made.values():
        rollout.directory.close()


@pytest.fixture(scope="module")
def cards(rollouts: dict[int, Rollout]) -> dict[int, list[Card]]:
    return {tokens: rollout.take() for tokens, rollout in rollouts.items()}


def test_driver_and_buffer_receive_as_many_bytes_for_long_trajectories_as_for_short_ones(
    rollouts: dict[int, Rollout], cards: dict[int, list[Card]]
) -> None:
    """What they receive in a step, as Ray sends it: each card twice, and what the driver sends on to the ranks."""
    received = {}
    for tokens, taken in cards.items():
        groups = [stored.group for stored in read(rollouts[tokens].folder.path)]
        by_id = {group.id: group for group in groups}
        assert all(t.samples[0].length > 0.9 * tokens for card in taken for t in card.trajectories)
        planned = plan(taken, rows_of([by_id[card.id] for card in taken]), 2, 4 * tokens, share_prefixes=True)
        received[tokens] = sum(map(bytes_by_ray, taken)) + bytes_by_ray(taken) + bytes_by_ray(planned)
        content = GROUPS * 4 * tokens * 13
        print(f"{received[tokens]} bytes for {content} bytes of samples")
    assert received[16_384] == pytest.approx(received[1024], rel=0.05)


def test_a_worker_at_the_gate_goes_on_as_soon_as_weights_are_published(
    rollouts: dict[int, Rollout], tmp_path: Path
) -> None:
    """It would wait for ten minutes else."""
    rollout = rollouts[1024]
    with RunDir.open(tmp_path / "run", resume="never", run_id="r1"):
        cluster = Cluster(tmp_path / "run" / "logs", "test")
        folder = RunFolder(path=str(tmp_path / "run"), run_id="r1")
        buffer = cluster.start_buffer(buffer_spec(rollout.recipe), folder, None)
        assert cluster.calls.ask(buffer, "issue", 0.01, 5, what="asking") == ()
        waiting = [buffer.issue.remote(600.0, most) for most in (10 * GROUPS, 1)]
        cluster.calls.ask(buffer, "told", what="letting both arrive")
        cluster.calls.ask(buffer, "published", 0, what="opening the gate")
        shares = ray.get(waiting, timeout=120)
        rest = cluster.calls.ask(buffer, "issue", 600.0, 10 * GROUPS, what="asking")
        places = (rollout.recipe.buffer.max_staleness + 1) * rollout.recipe.trainer.groups_per_step
        assert [len(share) for share in (*shares, rest)] == [places // 2, 1, places - places // 2 - 1]
        assert len({issue_id for issue_id, _ in (*shares[0], *shares[1], *rest)}) == places


def bytes_by_ray(value: Any) -> int:
    size: int = ray._private.worker.global_worker.get_serialization_context().serialize(value).total_bytes
    return size


def test_ranks_get_samples_from_the_worker_and_from_disk_once_it_is_gone(
    rollouts: dict[int, Rollout], cards: dict[int, list[Card]]
) -> None:
    rollout, taken = rollouts[1024], cards[1024]
    spec = trainer_spec(rollout.recipe, rollout.folder, "cpu")
    rank = rollout.cluster.spawn(Fetching, "trainer-0", Place(), 0, spec)
    places = [GroupPlace(address=card.address, reference=card.reference) for card in taken]
    assert all(place.reference is not None for place in places)
    first, second = places
    alive = ray.get(rank.fetch.remote(first))
    log = Path(rollout.folder.path) / "logs" / "trainer-0.log"
    assert "read from disk" not in log.read_text()
    ray.kill(rollout.cluster.workers[0])
    stored = ray.get([rank.fetch.remote(GroupPlace(address=place.address)) for place in places])
    assert alive == stored[0] and len(alive) == 4
    while "read from disk" not in log.read_text():  # until Ray notices that the worker is gone
        assert ray.get(rank.fetch.remote(second)) == stored[1]
