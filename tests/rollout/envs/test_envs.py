"""The generated environments: splits, oracles, and episodes in the real sandbox."""

from __future__ import annotations

import asyncio
import random
import shutil
from importlib.util import find_spec

import pytest

from rewards.judge.judge import Judge
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rollout.contracts import ToolCall
from rollout.envs import python as python_env
from rollout.envs import store as store_env
from rollout.envs.common import ANIMALS, ITEMS, PLACES
from rollout.envs.config import EnvironmentSettings, PythonSettings
from rollout.envs.registry import ENVIRONMENTS
from rollout.types import Message, Task
from tests.support import environment as spec_of

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(missing, reason="reasoning-gym is not installed"))
    for name in sorted(set(ENVIRONMENTS) - {"tools"})
    for missing in [name == "reasoning" and find_spec("reasoning_gym") is None]
]
SETTINGS = {"reasoning": {"family": "chain_sum"}}
"""What an environment needs to be made at all."""
MAX_OBSERVATION = 60
MISTAKES = [
    (python_env, "P_NO_TOOL"),
    (python_env, "P_NO_ANSWER"),
    (store_env, "P_FORGET"),
    (store_env, "P_WRONG_TOOL"),
]


@pytest.fixture
def faultless(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in MISTAKES:
        monkeypatch.setattr(module, name, 0.0)


def asked(task: Task) -> tuple[str, str]:
    return task.environment, task.messages[-1]["content"]


async def replay(messages: list[Message], task: Task, sandbox: Sandbox) -> tuple[list[str], dict[str, float]]:
    """Return what the environment really answers to a conversation's calls, and its score."""
    environment = spec_of(task.environment).make(task, sandbox)
    seen = []
    for message in messages:
        for call in message.get("tool_calls", []):
            function = call["function"]
            seen.append(await environment.call(ToolCall(name=function["name"], arguments=function["arguments"])))
    parts = await environment.score(messages[-1]["content"])
    await environment.close()
    return seen, parts


@pytest.mark.parametrize("name", NAMES)
def test_train_and_eval_never_ask_the_same_for_any_seed(name: str) -> None:
    spec = spec_of(name, **SETTINGS.get(name, {}))
    train = {asked(spec.generate(i, seed, "train")) for i in range(2000) for seed in (0, 1)}
    held_out = {asked(spec.generate(i, seed, "eval")) for i in range(300) for seed in (0, 1, 2)}
    assert not train & held_out
    assert len(train) > 300


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_a_pure_function_of_index_seed_and_split(name: str) -> None:
    spec = spec_of(name, **SETTINGS.get(name, {}))
    assert spec.generate(5, 3, "train") == spec.generate(5, 3, "train")
    assert len({spec.generate(i, s, "train").id for i in range(10) for s in range(3)}) == 30
    assert asked(spec.generate(5, 3, "train")) != asked(spec.generate(6, 3, "train"))


def test_the_words_of_different_kinds_are_different() -> None:
    assert len({*ITEMS, *ANIMALS, *PLACES}) == len(ITEMS) + len(ANIMALS) + len(PLACES)


@pytest.mark.slow
@needs_bubblewrap
@pytest.mark.usefixtures("faultless")
@pytest.mark.parametrize("name", ["python", "store"])  # whose mistakes can be switched off
def test_a_faultless_oracle_scores_1_and_its_tool_results_are_real(name: str) -> None:
    async def check() -> None:
        spec, sandbox, rng = spec_of(name, **SETTINGS.get(name, {})), Sandbox(SandboxConfig()), random.Random(0)
        for index in range(12):
            task = spec.generate(index, 11, "eval")
            messages = spec.demonstrate(task, rng)
            seen, parts = await replay(messages, task, sandbox)
            assert seen == [m["content"] for m in messages if m["role"] == "tool"]
            assert list(parts.values()) == [1.0]

    asyncio.run(check())


@pytest.mark.slow
@pytest.mark.parametrize("mistake", range(len(MISTAKES)))
@pytest.mark.usefixtures("faultless")
def test_every_mistake_of_the_oracle_costs_the_reward(mistake: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, constant = MISTAKES[mistake]
    monkeypatch.setattr(module, constant, 1.0)
    spec = spec_of(module.__name__.rsplit(".", 1)[1])

    async def check() -> None:
        sandbox, rng = Sandbox(SandboxConfig(kind="unsafe-none")), random.Random(0)
        for index in range(6):
            task = spec.generate(index, 1, "train")
            seen, parts = await replay(messages := spec.demonstrate(task, rng), task, sandbox)
            assert seen == [m["content"] for m in messages if m["role"] == "tool"]
            assert list(parts.values()) == [0.0]

    asyncio.run(check())


def test_the_oracle_succeeds_about_a_third_of_the_time() -> None:
    rng = random.Random(0)
    spec = store_env.StoreRequests(EnvironmentSettings(name="store"))
    tasks = [spec.generate(i, 0, "train") for i in range(400)]
    sandbox = Sandbox(SandboxConfig(kind="unsafe-none"))
    scores = [asyncio.run(replay(spec.demonstrate(t, rng), t, sandbox))[1]["state"] for t in tasks]
    assert 0.28 < sum(scores) / len(scores) < 0.44


def python_episode(kind: str = "bubblewrap", workspace: bool = False) -> python_env.PythonEpisode:
    settings = PythonSettings(name="python", max_observation=MAX_OBSERVATION, workspace=workspace)
    sandbox = Sandbox(SandboxConfig.model_validate({"kind": kind}))
    payload = {"tests": "assert answer.strip() == '7'"}
    task = Task(id="seven", environment="python", messages=({"role": "user", "content": "?"},), payload=payload)
    return python_env.PythonEpisode(task, sandbox, Judge(sandbox), settings)


@pytest.mark.slow
@needs_bubblewrap
@pytest.mark.parametrize("workspace", [False, True])
def test_files_stay_for_the_next_call_if_the_recipe_wants_that(workspace: bool) -> None:
    async def check() -> list[str]:
        episode = python_episode(workspace=workspace)
        shown = [
            await episode.call(ToolCall(name="python", arguments={"code": code}))
            for code in ("open('x', 'w').write('7')", "import os; print('x' in os.listdir('.'))")
        ]
        await episode.close()
        return shown

    assert asyncio.run(check()) == ["(no output)", str(workspace)]


@pytest.mark.slow
@needs_bubblewrap
def test_the_python_tool_runs_code_and_shows_what_the_policy_did_wrong() -> None:
    async def check() -> None:
        episode = python_episode()

        async def run(code: object) -> str:
            return await episode.call(ToolCall(name="python", arguments={"code": code}))

        assert await run("print(3 + 4)") == "7"
        assert await run("x = 1") == "(no output)"
        assert await run("1 / 0") == "error: ZeroDivisionError: division by zero"
        assert await run("print(5)\nexit()") == "5"
        assert await run("print(5)\nraise ValueError('a\\nb')") == "5\nerror: ValueError: a\nb"
        assert await run("x = 1\nprint(x") == "error: SyntaxError: '(' was never closed"
        assert await run("import sys\nsys.exit('no\\nluck')") == "error: luck"
        assert await run("import os\nos.memfd_create") == "(no output)"
        assert (await run("print('x' * 5000)")) == "x" * MAX_OBSERVATION + "…"
        assert await run(42) == "(no output)"
        assert await episode.score("7") == {"code": 1.0}
        assert await episode.score("8") == {"code": 0.0}
        assert await episode.score("' or True #") == {"code": 0.0}
        assert await episode.score(None) == {"code": 0.0}

    asyncio.run(check())


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (ToolCall(name="fly"), "error: unknown tool 'fly'; there are delete, get, set"),
        (ToolCall(name="set", arguments={"name": "cat"}), "error: set takes exactly name, place"),
        (ToolCall(name="get", arguments={"key": "cat"}), "error: get takes exactly name"),
        (ToolCall(name="get", arguments={"name": "dog"}), "error: no dog"),
    ],
)
def test_bad_calls_are_answered_with_an_error_and_change_nothing(call: ToolCall, error: str) -> None:
    episode = store_env.StoreEpisode({"cat": "attic"}, {})
    assert asyncio.run(episode.call(call)) == error
    assert episode.final_state() == {"cat": "attic"}


def test_the_store_is_judged_on_its_whole_final_state() -> None:
    async def check() -> None:
        start, goal = {"cat": "attic", "lamp": "shed"}, {"lamp": "shed"}
        episode = store_env.StoreEpisode(start, goal)
        assert await episode.score("done") == {"state": 0.0}
        assert await episode.call(ToolCall(name="delete", arguments={"name": "cat"})) == "ok"
        assert await episode.score("done") == {"state": 1.0}
        assert await episode.score(None) == {"state": 0.0}
        await episode.call(ToolCall(name="delete", arguments={"name": "lamp"}))
        assert await episode.score("done") == {"state": 0.0}
        assert start == {"cat": "attic", "lamp": "shed"}

    asyncio.run(check())


def test_a_rows_state_may_hold_any_json_value() -> None:
    state = {"lamp": 3, "chair": None, "clock": {"a": ["é"]}, "hammer": "attic"}
    spec = spec_of("store")
    task = Task(id="t", environment="store", messages=(), payload={"state": state, "goal": state})
    episode = spec.make(task, None)
    shown = [asyncio.run(episode.call(ToolCall(name="get", arguments={"name": name}))) for name in state]
    assert shown == ["3", "null", '{"a": ["é"]}', "attic"]
    assert asyncio.run(episode.score("done")) == {"state": 1.0}
