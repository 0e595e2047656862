"""What becomes of the audit of a chat format: a run that does not start, a warning, or nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl.cli import main
from rl.config import Recipe
from rl.driver.check_chat import ChatReport, chat_report, tools_offered
from rl.paths import REPOSITORY
from rl.recipe.load import load_recipe

QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"
LOSSY = """
from dataclasses import replace
from rollout.chat.glm45 import Glm45
from rollout.contracts import ToolCall

class Lossy(Glm45):
    def parse(self, token_ids, tools=()):
        turn = super().parse(token_ids, tools)
        return replace(turn, tool_calls=tuple(ToolCall(name=call.name) for call in turn.tool_calls))
"""
QUIET = """
from rollout.contracts import Environment, EnvironmentSpec
from rollout.types import Task

class Quiet(EnvironmentSpec):
    reward_parts = ("x",)

    def generate(self, index, seed, split):
        return Task(id=str(index), environment="Quiet", messages=({"role": "user", "content": "Hi"},))

    def make(self, task, sandbox):
        return Environment()

class Secret(Quiet):
    def make(self, task, sandbox):
        raise OSError("not here")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lossy.py").write_text(LOSSY, encoding="utf-8")
    (tmp_path / "quiet.py").write_text(QUIET, encoding="utf-8")
    return tmp_path


def recipe(*overrides: str) -> Recipe:
    return load_recipe(QUICKSTART, overrides)


def source(folder: Path, name: str) -> tuple[str, str]:
    return "sft=null", f"tasks.sources=[{{environment: {folder / 'quiet.py'}:{name}}}]"


def test_the_quickstart_is_fine() -> None:
    for thinking in ("true", "false"):
        assert chat_report(recipe(f"rollout.thinking={thinking}")) == ChatReport()


def test_a_format_that_loses_arguments_is_refused_where_there_are_tools(folder: Path) -> None:
    lossy = f"model.renderer={folder / 'lossy.py'}:Lossy"
    report = chat_report(recipe(lossy))
    assert report.warnings == () and any("the argument 'flag' comes back as" in text for text in report.problems)
    assert all(text.startswith(f"model.renderer={folder}/lossy.py:Lossy: ") for text in report.problems)
    assert chat_report(recipe(lossy, *source(folder, "Quiet"))) == ChatReport()
    unsure = chat_report(recipe(lossy, *source(folder, "Secret")))
    assert unsure.problems == () and unsure.warnings == report.problems


@pytest.mark.parametrize(("name", "offered"), [("Quiet", False), ("Secret", None)])
def test_whether_tools_are_offered(name: str, offered: bool | None, folder: Path) -> None:
    assert tools_offered(recipe(*source(folder, name))) is offered
    assert tools_offered(recipe()) is True


@pytest.mark.parametrize(
    ("renderer", "words"),
    [
        ("qwen3", "the tokenizer has no token '<|im_start|>'; Qwen3's format needs it as a special token"),
        ("chatml", "the tokenizer has no token '<|im_start|>'"),
        ("template", "the tokenizer has no chat template; name a chat format in model.renderer"),
    ],
)
def test_plan_refuses_a_format_that_the_tokenizer_does_not_fit(
    renderer: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(QUICKSTART), f"model.renderer={renderer}"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and words in said.err and said.err.startswith(f"error: model.renderer={renderer} with ")


def test_plan_shows_warnings_among_its_remarks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lossy = f"model.renderer={folder / 'lossy.py'}:Lossy"
    assert main(["plan", str(QUICKSTART), lossy, *source(folder, "Secret")]) == 0
    assert "the argument 'flag' comes back as" in capsys.readouterr().out.partition("── remarks ──")[2]


def run(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rl.cli", str(QUICKSTART), *overrides]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=110)


@pytest.mark.slow
def test_a_run_with_such_a_format_starts_nothing(folder: Path) -> None:
    done = run(f"run.dir={folder / 'run'}", f"model.renderer={folder / 'lossy.py'}:Lossy", "sandbox=unsafe-none")
    assert done.returncode == 2 and "the argument 'flag' comes back as" in done.stdout + done.stderr
    assert not (folder / "run").exists()
