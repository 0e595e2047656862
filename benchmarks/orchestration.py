"""Measure what rollouts cost beside engine, tools and trainer: the CPU time of agent loops, buffer, ledger and gate.

A scripted engine answers after a heavy-tailed time, scripted tools after another (Pareto). A trajectory has TURNS turns
and about 2,000 tokens, half of them sampled, in a byte-level chat format.

virtual   one process, real agent loops and a real buffer with its log, on a clock that jumps to the next event: CPU
          milliseconds a trajectory, while so many run at once. Without store and packing.
format    the same trajectory's parsing and bridging in GLM-4.5's format, which the byte-level format leaves out
ray       real Ray actors (workers, engines, buffer), against bare actor calls of the same number and concurrency: CPU
          seconds of all processes. An actor takes at most 1,000 calls at once, so trajectories are divided over as many
          engines and workers as that needs.

Everywhere a trainer takes steps, and it is checked that no token is older than the bound and that every issue in the
ledger ends once.

    .venv/bin/python -m benchmarks.orchestration virtual|format|ray [--trajectories 1000,10000]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import selectors
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from rewards.sandbox.config import SandboxConfig
from rl.driver.cluster import Cluster
from rl.driver.config import RunConfig
from rl.driver.placement import Place
from rl.processes.tree import kill_run, new_run_id
from rl.rundir.directory import RunDir
from rollout.actors.engine import ENGINE_CONCURRENCY_GROUPS, InferenceActor
from rollout.actors.process import relax_gc
from rollout.actors.worker import WorkerSpec
from rollout.agent.config import EvalConfig, RolloutConfig, SamplingConfig
from rollout.agent.episode import Agent
from rollout.agent.loop import run_group
from rollout.agent.source import Score, Source
from rollout.buffer.buffer import Buffer, BufferSpec
from rollout.buffer.resume import begin
from rollout.cards import card_of
from rollout.chat.config import RendererSettings
from rollout.chat.registry import load_chat
from rollout.contracts import AssistantTurn, Continuation, Environment, EnvironmentSpec, History, ToolCall, ToolSpec
from rollout.envs.config import EnvironmentSettings
from rollout.store.config import TrajectoriesConfig
from rollout.store.eventlog import EventLog, read_events
from rollout.store.shared import LOCK_NAME, RunFolder
from rollout.tasks.config import TasksConfig, TaskSource
from rollout.types import Address, Completion, Message, SamplingParams, Split, Task, TokenIds

GROUP, TURNS, SAMPLED, OBSERVED = 16, 8, 128, 112
STALENESS = 2
STEPS = 6
AT_ONCE = 1000
"""The most calls that an actor takes at once."""
WAVES = 2
CONFIG = RolloutConfig(
    group_size=GROUP,
    max_turns=TURNS,
    max_context=4096,
    sampling=SamplingConfig(max_tokens=SAMPLED),
    trajectory_timeout_s=1e6,
)


class Clock(selectors.DefaultSelector):
    """A selector that never waits: the loop's time jumps to the next event instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout > 0:
            self.now += timeout
            timeout = 0
        return super().select(timeout)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class ByteChat:
    """One token a byte. A turn calls a tool, until the last one."""

    stop_token_ids = (0,)

    def __init__(self) -> None:
        self._observation = [65] * OBSERVED
        self._call = AssistantTurn(content="call", tool_calls=(ToolCall(name="look", arguments={"at": "it"}),))

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool) -> list[int]:
        return self._observation

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec]) -> AssistantTurn:
        return self._call

    def bridge(
        self, token_ids: TokenIds, messages: Sequence[Message], thinking: bool, history: History
    ) -> Continuation:
        return Continuation(kind="extension", token_ids=self._observation)

    def say(self, message: Message, thinking: bool) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int]) -> str:
        return ""


class ScriptedEngine:
    """Answers after 1 to 100 seconds, mostly fast, with tokens of the version that is published then."""

    paused_s = 0.0

    def __init__(self, speed: float = 1.0) -> None:
        self.version = self.served = 0
        self._speed = speed
        self._random = random.Random(0)
        self._tokens = tuple(range(SAMPLED))
        self._logprobs = np.full(SAMPLED, -1.0, np.float32)

    async def generate(self, request_id: str, prompt: TokenIds, sampling: SamplingParams) -> Completion:
        begun = self.version
        self.served += 1
        await asyncio.sleep(min(100.0, self._random.paretovariate(1.5)) / self._speed)
        half = SAMPLED // 2
        versions = np.repeat([begun, self.version], [half, SAMPLED - half])
        return Completion(token_ids=self._tokens, logprobs=self._logprobs, versions=versions, finish_reason="stop")


class SlowTools(Environment):
    """Answers every call after 0.1 to 300 seconds, mostly fast."""

    tools = ()

    def __init__(self, latency: random.Random, speed: float = 1.0) -> None:
        self._latency = latency
        self._speed = speed

    async def call(self, call: ToolCall) -> str:
        await asyncio.sleep(min(300.0, 0.1 * self._latency.paretovariate(0.9)) / self._speed)
        return "seen"


class Scripted(Source):
    """The source of tasks whose reward is random."""

    compares = False

    def __init__(self) -> None:
        self.label = "scripted"
        self._random = random.Random(1)

    def make(self, task: Task) -> Environment:
        return SlowTools(self._random)

    async def score(self, environment: Environment, ending: Any) -> Score:
        reward = float(self._random.random() < 0.5)
        return Score(reward=reward, parts={"done": reward}, success=reward == 1.0)


class Trial:
    """Agent loops, buffer and a trainer that takes STEPS steps."""

    def __init__(self, folder: Path, trajectories: int) -> None:
        self.per_step = max(1, trajectories // GROUP // (STALENESS + 1))
        tasks = [Task(id=f"t{i}", environment="e", source="scripted", messages=()) for i in range(1000)]
        self.log = folder / "ledger.log"
        beginning = begin(EventLog(self.log), None, folder / "trajectories", max_staleness=STALENESS, seed=0)
        self.buffer = Buffer(
            tasks,
            beginning.ledger,
            beginning.cards,
            max_staleness=STALENESS,
            groups_per_step=self.per_step,
            failure_share_limit=1.0,
            seed=0,
        )
        self.engine = ScriptedEngine()
        self.agent = Agent(chat=ByteChat(), engine=self.engine, config=CONFIG, seed=0)
        self.source = Scripted()
        self.gate, self.finished = asyncio.Condition(), asyncio.Condition()
        self.records = self.done = self.running = self.most = self.oldest = 0

    async def run(self) -> None:
        """Take the steps. A slot that fails ends all with its error."""
        self.buffer.published(0)
        async with asyncio.TaskGroup() as group:
            slots = [group.create_task(self.slot()) for _ in range((STALENESS + 1) * self.per_step)]
            await self.train()
            for slot in slots:
                slot.cancel()

    async def train(self) -> None:
        for version in range(STEPS):
            async with self.finished:
                while (cards := self.buffer.take(version)) is None:
                    await self.finished.wait()
            spans = [span for card in cards if (span := card.version_span()) is not None]
            self.oldest = max(self.oldest, version - min(oldest for oldest, _ in spans))
            self.done += GROUP * len(cards)
            await asyncio.sleep(30.0)  # the step
            self.buffer.mark_trained([card.id for card in cards], version + 1)
            self.engine.version = version + 1
            async with self.gate:
                self.buffer.published(version + 1)
                self.gate.notify_all()

    async def slot(self) -> None:
        while True:
            async with self.gate:
                while (issued := self.buffer.issue()) is None:
                    await self.gate.wait()
            group_id, task = issued
            self.running += GROUP
            self.most = max(self.most, self.running)
            group = await run_group(self.agent, self.source, task, group_id)
            self.running -= GROUP
            self.records += 1
            async with self.finished:
                self.buffer.put(card_of(group, Address(segment=1, record=self.records)))
                self.finished.notify_all()


def check_ledger(path: Path, trained: int) -> None:
    """Every issue ended at most once, and so many groups were trained."""
    ends: Counter[str] = Counter()
    issued = set()
    for event in read_events(path):
        if event["event"] == "issued":
            assert event["id"] not in issued
            issued.add(event["id"])
        elif event["event"] == "trained":
            ends.update(event["ids"])
        elif event["event"] in ("dropped", "reissued"):
            ends[event["id"]] += 1
    assert all(count == 1 for count in ends.values()) and len(ends) == trained and ends.keys() <= issued


def virtual(trajectories: int) -> str:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        trial = Trial(Path(folder), trajectories)
        relax_gc()
        begun = time.process_time()
        runner.run(trial.run())
        seconds = time.process_time() - begun
        check_ledger(trial.log, trial.done // GROUP)
        assert trial.oldest <= STALENESS
        ran = trial.records * GROUP + trial.running / 2  # those that were cut at the end are half done
        finished = f"{trajectories:,} | {trial.most:,} | {trial.records * GROUP:,}"
        return f"| {finished} | {seconds:.1f} | {seconds / ran * 1e3:.2f} | {trial.oldest} |"


def glm_format() -> str:
    """CPU milliseconds of opening, parsing and bridging one trajectory in GLM-4.5's format."""
    chat = load_chat(RendererSettings(name="glm-4.5"), "recipes/models/tiny-glm4-moe")
    function = {"name": "look", "arguments": {"at": "the third shelf"}}
    said = chat.say({"role": "assistant", "content": "", "tool_calls": [{"function": function}]}, True)
    seen = [{"role": "tool", "content": "seen " * 20}]
    trajectories = 20
    begun = time.process_time()
    for _ in range(trajectories):
        tokens = chat.open([{"role": "user", "content": "Look at it."}], (), True)
        for _ in range(TURNS):
            tokens = [*tokens, *said]
            assert chat.parse(said, ()).tool_calls
            tokens = [*tokens, *chat.bridge(tokens, seen, True).token_ids]
    seconds = time.process_time() - begun
    return f"GLM-4.5's format: {seconds / trajectories * 1e3:.1f} ms of CPU a trajectory of {TURNS} turns"


class ScriptedInference(InferenceActor):
    """The real actor around the scripted engine, a hundred times as fast."""

    def __init__(self, role: str, logs_dir: str) -> None:
        super().__init__(role, logs_dir, 1, 0)
        self._engine = ScriptedEngine(speed=100.0)

    async def publish(self, version: int) -> None:
        self._engine.version = version

    async def served(self) -> int:
        """The number of requests so far."""
        count: int = self._engine.served
        return count


class Caller:
    """Sends the same requests to an engine without any agent: so many at once, TURNS each, one after the other."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def call(self, trajectories: int) -> None:
        async def one(number: int) -> None:
            for turn in range(TURNS):
                prompt = np.zeros(OBSERVED + turn * (OBSERVED + SAMPLED), np.int32)
                await self._engine.generate.remote(f"{number}/{turn}", prompt, SamplingParams(max_tokens=SAMPLED))

        await asyncio.gather(*(one(number) for number in range(trajectories)))


class Scene(EnvironmentSpec):
    """The environment with slow tools, a hundred times as fast."""

    name = "scene"
    reward_parts = ("done",)

    def generate(self, index: int, seed: int, split: Split) -> Task:
        return Task(id=f"{split}-{index}", environment=self.name, messages=({"role": "user", "content": "?"},))

    def make(self, task: Task, sandbox: Any) -> Environment:
        return ScoredTools(random.Random(task.id), speed=100.0)


class ScoredTools(SlowTools):
    async def score(self, answer: str | None) -> dict[str, float]:
        return {"done": float(self._latency.random() < 0.5)}


class ByteFormat(ByteChat):
    """The byte-level format as a recipe's."""

    def __init__(self, tokenizer: Any, settings: RendererSettings) -> None:
        super().__init__()


def with_ray(trajectories: int) -> str:
    """The row of real actors against bare calls: CPU milliseconds for each request to an engine."""
    run_id, actors = new_run_id(), -(-trajectories // AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        run = RunDir.open(Path(folder) / "run", resume="never", run_id=run_id)
        cluster = Cluster(run.logs, run_id)
        cluster.connect(RunConfig(), 256 * 2**20)
        try:
            engines = [
                cluster.spawn(ScriptedInference, f"engine-{i}", Place(), groups=ENGINE_CONCURRENCY_GROUPS)
                for i in range(actors)
            ]
            callers = [ray.remote(Caller).remote(engine) for engine in engines]
            ray.get([caller.call.remote(1) for caller in callers])
            begun, before = cpu_seconds(), served(engines)
            for _ in range(WAVES):
                ray.get([caller.call.remote(trajectories // actors) for caller in callers])
            bare = (cpu_seconds() - begun) / (served(engines) - before) * 1e3
            finished, whole, oldest = rollouts(cluster, run, engines, trajectories)
            check_ledger(run.ledger, finished)
        finally:
            cluster.close()
            run.close()
            kill_run(run_id)
    return f"| {trajectories:,} | {actors} + {actors} | {bare:.2f} | {whole:.2f} | {whole / bare:.2f} | {oldest} |"


def rollouts(cluster: Cluster, run: RunDir, engines: list[Any], trajectories: int) -> tuple[int, float, int]:
    """Let workers, engines and the buffer work until WAVES times so many trajectories are trained. Return the trained
    groups, the CPU milliseconds for each request, and the age of the oldest token."""
    per_step = trajectories // GROUP // (STALENESS + 1)
    folder = RunFolder(path=str(run.path), run_id=run.path.joinpath(LOCK_NAME).read_text().strip())
    source = TaskSource(environment=EnvironmentSettings(name="benchmarks.orchestration:Scene"))
    slots = -(-per_step * (STALENESS + 1) // len(engines))
    spec = WorkerSpec(
        model_path="recipes/models/tiny-glm4-moe",
        renderer=RendererSettings(name="benchmarks.orchestration:ByteFormat"),
        sources=(source,),
        rollout=CONFIG.model_copy(update={"workers": len(engines), "groups_per_worker": slots}),
        evaluation=EvalConfig(),
        sandbox=SandboxConfig(kind="unsafe-none"),
        trajectories=TrajectoriesConfig(),
        folder=folder,
        generate_timeout_s=None,
        seed=0,
    )
    buffer_spec = BufferSpec(
        tasks=TasksConfig(sources=(source,)),
        max_staleness=STALENESS,
        groups_per_step=per_step,
        failure_share_limit=1.0,
        seed=0,
    )
    buffer = cluster.start_buffer(buffer_spec, folder, None)
    cluster.start_workers(spec, engines, buffer)
    ray.get([worker.seal.remote() for worker in cluster.workers])  # they have started
    begun, before, finished, oldest = cpu_seconds(), served(engines), 0, 0
    ray.get(buffer.published.remote(0))
    running = [worker.run.remote() for worker in cluster.workers]
    for version in range(WAVES * (STALENESS + 1)):
        while (cards := ray.get(buffer.take.remote(version, 60.0)).cards) is None:
            assert not ray.wait(running, timeout=0)[0], "a worker has stopped"
        oldest = max(oldest, *(version - span[0] for card in cards if (span := card.version_span())))
        finished += len(cards)
        ray.get(buffer.mark_trained.remote([card.id for card in cards], version + 1))
        ray.get([engine.publish.remote(version + 1) for engine in engines])
        ray.get(buffer.published.remote(version + 1))
    milliseconds = (cpu_seconds() - begun) / (served(engines) - before) * 1e3
    assert oldest <= STALENESS
    return finished, milliseconds, oldest


def served(engines: list[Any]) -> int:
    return sum(ray.get([engine.served.remote() for engine in engines]))


def cpu_seconds() -> float:
    """The CPU time of this process and all that it has started."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("virtual", "format", "ray"))
    parser.add_argument("--trajectories", default="1000,10000", help="comma-separated: trajectories at once")
    options = parser.parse_args()
    if options.part == "format":
        print(glm_format())
    elif options.part == "ray":
        print("| at once | workers + engines | a bare call, ms | a rollout's, ms | ratio | oldest token |")
        print("|---|---|---|---|---|---|")
        for trajectories in map(int, options.trajectories.split(",")):
            print(with_ray(trajectories), flush=True)
    else:
        print("| asked for | at once | finished | CPU, s | CPU a trajectory, ms | oldest token |")
        print("|---|---|---|---|---|---|")
        for trajectories in map(int, options.trajectories.split(",")):
            print(virtual(trajectories), flush=True)


if __name__ == "__main__":
    main()
