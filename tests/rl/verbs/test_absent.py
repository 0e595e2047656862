"""What is told about a first argument that is neither a verb nor a recipe, also before there is an environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl import cli
from rl.paths import REPOSITORY
from rl.verbs.absent import VERBS, is_file, no_such


def test_it_knows_the_verbs() -> None:
    assert set(VERBS) == set(cli.VERBS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("plann", "did you mean 'plan'?"),
        ("doctr", "did you mean 'doctor'?"),
        ("chekc", "did you mean 'check'?"),
        ("recipes/quickstar.yaml", "did you mean 'recipes/quickstart.yaml'?"),
        ("quickstart.yaml", "did you mean 'recipes/quickstart.yaml'?"),
        (
            "recipes",
            "is a directory; give a recipe file (in it are: recipes/agent_rl.yaml, recipes/lora_single_gpu.yaml, ",
        ),
        ("tests", "is a directory; give a recipe file (in it are: none)"),
        ("zzzzzz", "./launch.sh --help lists the verbs"),
        ("a\nb\x1b[2J", r"'a\nb\x1b[2J'"),
        ("x" * 100_000, "./launch.sh --help lists the verbs"),
        ("a\0b", r"'a\x00b'"),
    ],
)
def test_the_message(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = no_such(name)
    assert hint in text and "\n" not in text and len(text) < 500 and not is_file(name)


def test_launch_tells_it_without_an_environment(tmp_path: Path) -> None:
    script = [sys.executable, "-S", str(REPOSITORY / "rl" / "verbs" / "absent.py"), "plann"]
    ended = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode and "did you mean 'plan'?" in ended.stderr
    ended = subprocess.run(["./launch.sh", "plann"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "did you mean 'plan'?" in ended.stderr
