"""Tools and environments in plain Python."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import Ending
from rewards.errors import InfrastructureError
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import FunctionSettings, RewardSettings
from rl.recipe.extensions import chosen_settings
from rollout.agent.source import Source
from rollout.contracts import Environment, ToolCall
from rollout.envs.config import EnvironmentSettings, PlainSettings
from rollout.envs.plain import lacking_for_reset
from rollout.tasks.config import TaskSource
from rollout.types import Task

pytestmark = pytest.mark.slow

CODE = '''
import asyncio, os, time
from typing import Literal


def add(a: int, b: int = 1) -> int:
    """
    Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def wait(seconds: float) -> str:
    """
    Wait.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return "waited"


def block(seconds: float) -> str:
    """
    Wait without letting others work.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "blocked"


def parts() -> list:
    """Return a list of text parts."""
    return [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def broken() -> None:
    """Raise something."""
    raise RuntimeError("as asked")


def service() -> None:
    """Fail as a service that is away."""
    from rewards.errors import InfrastructureError

    raise InfrastructureError("the service is away")


def dies() -> None:
    """End the process."""
    os._exit(4)


def look_up(where: str | None = None, count: int | None = None) -> str:
    """
    Look something up.

    Args:
        where: Where.
        count: How many.
    """
    return repr((where, count))


def plain_decorator(function):
    def inner(a: int) -> int:
        """
        Do it.

        Args:
            a: A number.
        """
        return function(a)

    return inner


renamed = plain_decorator(lambda a: a + 1)


def undescribed(x: int) -> int:
    return x


class Counter:
    def __init__(self):
        self.value = None

    def reset(self, start, **kwargs):
        self.value = start
        self.reward = 0.0
        return f"\\nThe counter is at {start}."

    def step(self, by: int, direction: Literal["up", "down"] = "up") -> str:
        """
        Move the counter.

        Args:
            by: How far.
            direction: Where to.
        """
        self.value += by if direction == "up" else -by
        self.reward = float(self.value == 10)
        return f"now {self.value}"

    async def look(self) -> int:
        """Look at the counter."""
        return self.value

    @staticmethod
    def double(x: int) -> int:
        """
        Double a number.

        Args:
            x: The number.
        """
        return 2 * x

    def get_reward(self) -> float:
        return self.reward if self.value != 7 else None

    def _private(self):
        raise AssertionError("no tool")


class Slow:
    open = 0

    def __init__(self):
        time.sleep(1.0)
        Slow.open += 1

    def reset(self, **kwargs):
        pass

    def close(self):
        Slow.open -= 1

    def count(self) -> int:
        """Count those that are open."""
        return Slow.open


class Silent:
    def reset(self, **kwargs):
        assert kwargs["prompt"][-1]["role"] == "user"


def reached(environments, goal, **kwargs):
    return [float(environment.value == wanted) for environment, wanted in zip(environments, goal)]
'''
SANDBOX = Sandbox(SandboxConfig(kind="unsafe-none"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def source(file: Path, environment: str = "tools", *tools: str, rewards: tuple[str, ...] = (), **keys: Any) -> Source:
    name = environment if environment == "tools" else f"{file}:{environment}"
    assert chosen_settings(EnvironmentSettings.kind, name) is PlainSettings
    settings = PlainSettings(name=name, tools=tuple(f"{file}:{tool}" for tool in tools), **keys)
    chosen: tuple[RewardSettings, ...] = tuple(FunctionSettings(name=f"{file}:{name}") for name in rewards)
    own = (RewardSettings(name="environment"),)
    return Source(TaskSource(environment=settings, rewards=(*own, *chosen)), SANDBOX)


def task(**columns: Any) -> Task:
    return Task(id="t", environment="e", messages=({"role": "user", "content": "Go."},), metadata=columns)


def played(made: Source, play: Callable[[Environment], Awaitable[Any]], **columns: Any) -> Any:
    """Play an episode, and end the process in which it was."""

    async def run() -> Any:
        episode = made.make(task(**columns))
        try:
            return await play(episode)
        finally:
            await episode.close()
            await made._spec._host.close()  # type: ignore[attr-defined]

    return asyncio.run(run())


def result(made: Source, name: str, **arguments: Any) -> Any:
    return played(made, lambda episode: episode.call(ToolCall(name=name, arguments=arguments)))


def test_a_function_is_described_by_its_types_and_docstring(file: Path) -> None:
    (tool,) = source(file, "tools", "add").make(task()).tools
    assert tool == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "The first."},
                    "b": {"type": "integer", "description": "The second."},
                },
                "required": ["a"],
            },
        },
    }


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("add", {"a": 2, "b": 3}, "5"),
        ("add", {"a": 2}, "3"),
        ("add", {"a": "x"}, "error: a must be of type integer"),
        ("add", {}, "error: add takes a and may take b"),
        ("sub", {}, "error: unknown tool 'sub'; there are add, block, broken, parts, wait"),
        ("wait", {"seconds": 0.0}, "waited"),
        ("wait", {"seconds": 50.0}, "error: wait took longer than 2 s"),
        ("block", {"seconds": 50.0}, "error: block took longer than 2 s"),
        ("parts", {}, "ab"),
        ("broken", {}, "error: RuntimeError: as asked"),
    ],
)
def test_what_a_function_returns_or_raises_is_shown(
    file: Path, name: str, arguments: dict[str, Any], shown: str
) -> None:
    made = source(file, "tools", "add", "wait", "block", "parts", "broken", tool_timeout_s=2.0)
    assert result(made, name, **arguments) == shown


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("service", "environment tools: .*the service is away"),
        ("dies", "process of environment tools ended with exit code 4"),
    ],
)
def test_what_the_policy_did_not_cause_is_a_failure(file: Path, name: str, reason: str) -> None:
    with pytest.raises(InfrastructureError, match=reason):
        result(source(file, "tools", name), name)


def test_null_is_given_where_it_may_be(file: Path) -> None:
    made = source(file, "tools", "look_up")
    assert result(made, "look_up", where=None, count=None) == "(None, None)"
    assert result(made, "look_up", where="x") == "('x', None)"


def test_a_tool_is_called_by_the_name_that_the_recipe_gives(file: Path) -> None:
    made = source(file, "tools", "renamed")
    assert [tool["function"]["name"] for tool in made.make(task()).tools] == ["renamed"]
    assert result(made, "renamed", a=1) == "2"
    with pytest.raises(ValueError, match="two tools are called 'add'"):
        source(file, "tools", "add", "add")


def test_what_reset_asks_for_must_be_a_column(file: Path) -> None:
    settings = PlainSettings(name=f"{file}:Counter")
    assert lacking_for_reset(settings, {"start"}) is None
    assert lacking_for_reset(settings, {"begin"}) == "reset asks for 'start', which no row has"
    assert lacking_for_reset(PlainSettings(name="tools"), set()) is None


def test_a_function_that_cannot_be_described_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=r"tool 'undescribed' cannot be described to the model: .*docstring"):
        source(file, "tools", "undescribed")


def test_calls_that_block_do_not_wait_for_each_other(file: Path) -> None:
    made = source(file, "tools", "block")

    async def play(episode: Environment) -> float:
        loop = asyncio.get_running_loop()
        await episode.call(ToolCall(name="block", arguments={"seconds": 0.0}))
        begin = loop.time()
        calls = [episode.call(ToolCall(name="block", arguments={"seconds": 1.0})) for _ in range(20)]
        assert await asyncio.gather(*calls) == ["blocked"] * 20
        return loop.time() - begin

    assert played(made, play) < 15, "twenty seconds one after the other"


def test_a_class_is_an_environment_as_it_is(file: Path) -> None:
    made = source(file, "Counter", "add", rewards=("reached",))
    assert made.parts == ("Counter", "reached")
    assert [t["function"]["name"] for t in made.make(task()).tools] == ["add", "double", "look", "step"]

    async def play(episode: Environment) -> tuple[Any, ...]:
        opened = await episode.open(task().messages)
        said = [
            await episode.call(ToolCall(name="step", arguments={"by": 7})),
            await episode.call(ToolCall(name="step", arguments={"by": 2, "direction": "down"})),
            await episode.call(ToolCall(name="look")),
            await episode.call(ToolCall(name="double", arguments={"x": 4})),
            await episode.call(ToolCall(name="add", arguments={"a": 4})),
            await episode.call(ToolCall(name="step", arguments={"by": 1, "direction": "left"})),
        ]
        ending = Ending(answer="done", task="t", metadata={"goal": 10}, hosted=episode.hosted())
        return opened, said, await made.score(episode, ending)

    opened, said, score = played(made, play, start=5, goal=10)
    assert opened == [{"role": "user", "content": "Go.\nThe counter is at 5."}]
    assert said[:5] == ["now 12", "now 10", "10", "8", "5"] and said[5].startswith("error: direction:")
    assert score.parts == {"Counter": 1.0, "reached": 1.0} and score.reward == 2.0 and score.success


def test_a_reward_of_none_does_not_apply(file: Path) -> None:
    made = source(file, "Counter", rewards=("reached",))

    async def play(episode: Environment) -> Any:
        await episode.open(task().messages)
        ending = Ending(answer=None, task="t", metadata={"goal": 7}, hosted=episode.hosted())
        return await made.score(episode, ending)

    assert played(made, play, start=7, goal=7).parts == {"reached": 1.0}
    alone = source(file, "Counter")

    async def nothing_applies(episode: Environment) -> Any:
        await episode.open(task().messages)
        return await alone.score(episode, Ending(answer=None, task="t"))

    with pytest.raises(InfrastructureError, match="none of the rewards Counter applies to task t"):
        played(alone, nothing_applies, start=7)


def test_episodes_do_not_see_each_other_and_a_reset_may_show_nothing(file: Path) -> None:
    made = source(file, "Counter")

    async def play(episode: Environment) -> list[str]:
        other = made.make(task(start=100))
        await asyncio.gather(episode.open(task().messages), other.open(task().messages))
        step = ToolCall(name="step", arguments={"by": 1})
        return [str(await one.call(step)) for one in (episode, other, episode)]

    assert played(made, play, start=1) == ["now 2", "now 101", "now 3"]
    silent = source(file, "Silent", rewards=("reached",))
    assert played(silent, lambda episode: episode.open(task().messages)) == task().messages


def test_an_episode_whose_process_ended_is_lost_and_the_next_one_is_played(file: Path) -> None:
    made = source(file, "Counter", "dies")

    async def play(episode: Environment) -> str:
        await episode.open(task().messages)
        with pytest.raises(InfrastructureError, match="ended with exit code 4"):
            await episode.call(ToolCall(name="dies"))
        with pytest.raises(InfrastructureError, match="the environment was lost when its process ended"):
            await episode.call(ToolCall(name="look"))
        again = made.make(task(start=3))
        await again.open(task().messages)
        return str(await again.call(ToolCall(name="look")))

    assert played(made, play, start=1) == "3"


def test_calls_that_were_only_slow_are_not_counted_as_stuck(file: Path) -> None:
    made = source(file, "tools", "block", tool_timeout_s=0.1)

    async def play(episode: Environment) -> str:
        for _ in range(20):
            await episode.call(ToolCall(name="block", arguments={"seconds": 0.15}))
            await asyncio.sleep(0.1)
        return str(await episode.call(ToolCall(name="block", arguments={"seconds": 0.0})))

    assert played(made, play) == "blocked"


def test_an_environment_that_is_given_up_while_it_is_made_is_closed(file: Path) -> None:
    made = source(file, "Slow", rewards=("reached",))

    async def play(episode: Environment) -> str:
        await episode.open(task().messages)
        other = made.make(task())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.open(task().messages), 0.3)
        await other.close()
        await asyncio.sleep(1.5)
        return str(await episode.call(ToolCall(name="count")))

    assert played(made, play) == "1"


def test_threads_that_are_stuck_end_the_process_at_last(file: Path) -> None:
    made = source(file, "tools", "block", tool_timeout_s=0.3)

    async def play(episode: Environment) -> list[object]:
        call = ToolCall(name="block", arguments={"seconds": 1000.0})
        return await asyncio.gather(*(episode.call(call) for _ in range(16)), return_exceptions=True)

    found = played(made, play)
    assert [one for one in found if isinstance(one, str)] == ["error: block took longer than 0.3 s"] * 15
