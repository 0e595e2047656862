"""Reward functions in TRL's signature, in processes of their own."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards.contracts import Ending, Scored
from rewards.errors import InfrastructureError
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import FunctionSettings
from rewards.scorers.function import FunctionReward, lacking
from rl.recipe.extensions import chosen_settings

pytestmark = pytest.mark.slow

CODE = """
import asyncio, os, signal, subprocess, sys, threading, time


def accuracy(prompts, completions, answer, **kwargs):
    return [float(c[-1]["content"] == a) for c, a in zip(completions, answer)]


def named_columns_only(completions, answer):
    return [len(answer)]


async def slowly(completions, **kwargs):
    await asyncio.sleep(0.3)
    return [1.0]


def for_some(completions, answer, **kwargs):
    return [None if answer[0] is None else 1.0]


async def slow_for(completions, seconds, **kwargs):
    await asyncio.sleep(seconds[0])
    return [1.0]


def hangs_for(completions, seconds, **kwargs):
    time.sleep(seconds[0])
    return [1.0]


def sometimes(completions, **kwargs):
    return [None]


def returns(completions, what, **kwargs):
    return eval(what[0])


def raises(completions, **kwargs):
    raise KeyError("no such thing")


def crashes(completions, **kwargs):
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(completions, **kwargs):
    sys.exit(3)


def hangs(completions, **kwargs):
    subprocess.Popen(["sleep", "1000"])
    while True:
        pass


def crashes_for(completions, answer, **kwargs):
    if answer[0] == "bad":
        os._exit(1)
    return [0.5]


def in_the_main_thread(completions, **kwargs):
    signal.setitimer(signal.ITIMER_REAL, 100)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return [float(threading.current_thread() is threading.main_thread())]


def one_at_a_time(completions, **kwargs):
    begin = time.monotonic()
    time.sleep(0.2)
    return [begin]


def logs(completions, log_metric, log_extra, **kwargs):
    log_extra("column", ["x"])
    log_metric("length", 7)
    print("a print harms nothing")
    return [len(completions[0])]


def process(completions, **kwargs):
    return [os.getpid()]


def wants_tokens(completions, completion_ids):
    return [0.0]


class Callable:
    async def __call__(self, completions, **kwargs):
        return [3]


made = Callable()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def reward(file: Path, name: str, **settings: Any) -> FunctionReward:
    chosen = chosen_settings("reward", f"{file}:{name}")
    assert chosen is FunctionSettings
    made = FunctionSettings(name=f"{file}:{name}", **settings)
    return FunctionReward(made, Sandbox(SandboxConfig(kind="unsafe-none")))


ASKED = {"role": "user", "content": "2 + 2?"}


def ending(said: str = "4", **columns: Any) -> Ending:
    messages = (ASKED, {"role": "assistant", "content": said})
    return Ending(answer=said, task="t", messages=messages, asked=1, metadata=columns)


async def closing(made: FunctionReward, work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    finally:
        for host in made._hosts:
            await host.close()


def score(made: FunctionReward, *endings: Ending) -> list[Scored]:
    async def every() -> list[Scored]:
        return [await made.score(one) for one in endings]

    found: list[Scored] = asyncio.run(closing(made, every()))
    return found


def parts(made: FunctionReward, *endings: Ending) -> list[dict[str, float]]:
    return [dict(scored.parts) for scored in score(made, *endings)]


def test_lists_go_in_and_a_list_comes_out(file: Path) -> None:
    found = parts(reward(file, "accuracy"), ending("4", answer="4"), ending("5", answer="4"))
    assert found == [{"accuracy": 1.0}, {"accuracy": 0.0}]
    assert parts(reward(file, "named_columns_only", part="own"), ending(answer="4", other=1)) == [{"own": 1.0}]
    assert parts(reward(file, "made"), ending()) == [{"made": 3.0}]


def test_it_may_get_the_text_alone(file: Path) -> None:
    made = reward(file, "accuracy", completions="text")
    with pytest.raises(InfrastructureError, match="TypeError"):  # a text has no contents
        score(made, ending("4", answer="4"))
    assert parts(reward(file, "logs", completions="text"), ending("12345")) == [{"logs": 5.0}]


def test_none_says_that_it_does_not_apply(file: Path) -> None:
    assert parts(reward(file, "sometimes"), ending()) == [{}]


def test_a_row_that_lacks_a_column_has_a_none_there(file: Path) -> None:
    assert parts(reward(file, "for_some"), ending(answer="4"), ending(hint=1)) == [{"for_some": 1.0}, {}]


def test_what_it_logs_is_kept(file: Path) -> None:
    (found,) = score(reward(file, "logs"), ending())
    assert found.metrics == {"length": 7.0}


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("[True]", 1.0),
        ("(2,)", 2.0),
        ("__import__('numpy').array([0.25])", 0.25),
        ("[__import__('numpy').int8(3)]", 3.0),
    ],
)
def test_numbers_of_any_kind(file: Path, what: str, value: float) -> None:
    assert parts(reward(file, "returns"), ending(what=what)) == [{"returns": value}]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("0.5", "it returned 0.5, and not a list with one number"),
        ("[]", r"it returned \[\], and not a list"),
        ("[1, 2]", r"it returned \[1, 2\], and not a list"),
        ("None", "it returned None"),
        ("'1'", "it returned '1'"),
        ("['1']", "it returned '1', which is no finite number"),
        ("[float('nan')]", "it returned nan, which is no finite number; None says that it does not apply"),
        ("[float('inf')]", "it returned inf"),
        ("[[1]]", "TypeError"),
        ("1/0", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_reward_is_a_failure(file: Path, what: str, reason: str) -> None:
    with pytest.raises(InfrastructureError, match=rf"reward returns: .*{reason}"):
        score(reward(file, "returns"), ending(what=what))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "reward raises: KeyError: 'no such thing'"),
        ("crashes", "the process of reward crashes ended by SIGSEGV"),
        ("leaves", "the process of reward leaves ended with exit code 3"),
    ],
)
def test_code_that_fails_is_a_failure_that_is_named(file: Path, name: str, reason: str) -> None:
    with pytest.raises(InfrastructureError, match=reason):
        score(reward(file, name), ending(hint=1))


def test_a_hang_is_ended_with_all_that_it_started(file: Path) -> None:
    made = reward(file, "hangs", deadline_s=1.0)

    async def work() -> None:
        with pytest.raises(InfrastructureError, match="reward hangs took longer than 1 s"):
            await made.score(ending())

    before = set(psutil.Process().children(recursive=True))
    begin = time.monotonic()
    asyncio.run(closing(made, work()))
    assert time.monotonic() - begin < 60
    end = time.monotonic() + 30
    while left := [p for p in psutil.Process().children(recursive=True) if p not in before and p.status() != "zombie"]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def test_a_slow_call_does_not_harm_those_beside_it(file: Path) -> None:
    made = reward(file, "slow_for", deadline_s=2.0)

    async def work() -> list[object]:
        await made.score(ending(seconds=0.0))
        return await asyncio.gather(*(made.score(ending(seconds=s)) for s in (60.0, 1.0, 1.0)), return_exceptions=True)

    slow, *others = asyncio.run(closing(made, work()))
    assert "took longer than 2 s" in str(slow) and all(isinstance(one, Scored) for one in others)


def test_a_call_that_nobody_waits_for_any_more_is_still_ended(file: Path) -> None:
    """Its process would otherwise hang for ever, and take the next calls along."""
    made = reward(file, "hangs_for", deadline_s=4.0)

    async def work() -> Scored:
        await made.score(ending(seconds=0.0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.score(ending(seconds=1000.0)), 0.5)
        return await made.score(ending(seconds=0.0))

    assert asyncio.run(closing(made, work())).parts == {"hangs_for": 1.0}


def test_a_file_of_any_name_in_the_working_directory_is_no_obstacle(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rewards.py", "rl.py", "json.py", "asyncio.py"):
        (file.parent / name).write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(file.parent)
    assert parts(reward(file, "accuracy"), ending("4", answer="4")) == [{"accuracy": 1.0}]


def test_a_crash_fails_one_episode_and_the_next_is_scored(file: Path) -> None:
    made = reward(file, "crashes_for")

    async def work() -> list[object]:
        wanted = [made.score(ending(answer=answer)) for answer in ("good", "bad", "good", "good")]
        return await asyncio.gather(*wanted, return_exceptions=True)

    found = asyncio.run(closing(made, work()))
    assert [type(one).__name__ for one in found] == ["Scored", "InfrastructureError", "Scored", "Scored"]


def test_plain_code_runs_in_the_main_thread_one_call_after_the_other(file: Path) -> None:
    assert parts(reward(file, "in_the_main_thread"), ending()) == [{"in_the_main_thread": 1.0}]
    made = reward(file, "one_at_a_time")
    found = asyncio.run(closing(made, asyncio_gather(made, 3)))
    begins = sorted(one.parts["one_at_a_time"] for one in found)
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(begins))


async def asyncio_gather(made: FunctionReward, count: int) -> list[Scored]:
    return await asyncio.gather(*(made.score(ending()) for _ in range(count)))


def test_asynchronous_code_scores_many_at_once_and_a_wait_for_a_place_is_not_its_time(file: Path) -> None:
    made = reward(file, "slowly", concurrency=4, deadline_s=30.0)
    assert len(asyncio.run(closing(made, asyncio_gather(made, 12)))) == 12
    made = reward(file, "one_at_a_time", deadline_s=10.0)
    assert len(asyncio.run(closing(made, asyncio_gather(made, 5)))) == 5


def test_it_runs_in_as_many_processes_as_asked_for_and_not_in_this_one(file: Path) -> None:
    made = reward(file, "process", processes=2)
    found = {one.parts["process"] for one in asyncio.run(closing(made, asyncio_gather(made, 6)))}
    assert len(found) == 2 and os.getpid() not in found


def test_code_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def f(completions): ...\n")
    made = reward(path, "f")
    path.write_text("import absent_module\n")
    with pytest.raises(InfrastructureError, match=r"reward f: .*broken.py cannot be imported: ModuleNotFoundError"):
        score(made, ending())


def test_what_it_asks_for_and_does_not_get_is_told_beforehand(file: Path) -> None:
    def code(name: str) -> Any:
        from rewards.extension import load

        return load({}, f"{file}:{name}")

    assert lacking(code("accuracy"), {"answer": 1}) is None
    assert lacking(code("made"), {}) is None
    assert "asks for 'answer', which is no column of the task; there are 'hint'" in str(
        lacking(code("accuracy"), {"hint": 1})
    )
    assert "asks for 'completion_ids', which rewards do not get here" in str(lacking(code("wants_tokens"), {}))
