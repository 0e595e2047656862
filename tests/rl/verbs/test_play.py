"""`play`: what a person types becomes turns, and is scored."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rl.paths import REPOSITORY
from rl.recipe.load import load_recipe
from rl.verbs.play import play, said
from rollout.tasks.stream import EVAL_SEED, task_stream

RECIPE = str(REPOSITORY / "recipes" / "quickstart.yaml")
STORE = ("tasks.sources=[{environment: store}]", "tasks.eval_size=1", "run.device=cpu")


def typing(*lines: str) -> Callable[[str], str]:
    waiting = list(lines)

    def ask(_: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    return ask


def test_tools_and_an_answer_solve_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    (task,) = task_stream(load_recipe(RECIPE, STORE).tasks, "eval", EVAL_SEED).once()
    before, after = task.payload["state"], task.payload["goal"]
    calls = [f"set name={name} place={place}" for name, place in after.items() if before.get(name) != place]
    calls += [f"delete name={name}" for name in before if name not in after]
    assert play([RECIPE, *STORE], typing(*calls, "Done.")) == 0
    assert "answered · reward 1 (state 1) · success" in capsys.readouterr().out


def test_what_is_mistyped_can_be_typed_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert play([RECIPE, *STORE], typing("get {oops", "get fox", 'get {"name": "fox"}', "I give\\", "up.")) == 0
    out = capsys.readouterr().out
    assert "<|user|>" in out and "<tool_response>" in out, "what the model would see"
    assert "these arguments are not JSON" in out and "write arguments as key=value or as JSON; 'fox' is neither" in out
    assert "answered · reward 0 (state 0) · no success" in out


def test_leaving_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert play([RECIPE, *STORE], typing()) == 0
    assert "reward" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello there", {"role": "assistant", "content": "hello there"}),
        ("getting there", {"role": "assistant", "content": "getting there"}),
        ("two\nlines", {"role": "assistant", "content": "two\nlines"}),
        ("", {"role": "assistant", "content": ""}),
    ],
)
def test_a_line_is_an_answer(line: str, message: dict[str, str]) -> None:
    assert said(line, ["get"]) == message


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("get", {}),
        ("get name=fox", {"name": "fox"}),
        ("get name='a b' n=3 yes=true", {"name": "a b", "n": 3, "yes": True}),
        ('get {"name": {"x": [1]}}', {"name": {"x": [1]}}),
    ],
)
def test_the_name_of_a_tool_calls_it(line: str, arguments: dict[str, object]) -> None:
    call = {"type": "function", "function": {"name": "get", "arguments": arguments}}
    assert said(line, ["get"]) == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_what_is_no_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert play([]) == play(["absent.yaml"]) == play([RECIPE, "x=1"]) == 2
    assert "play needs a recipe" in capsys.readouterr().err
