"""`eval` with an endpoint, and what it refuses. With engines: tests/e2e/test_eval.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.observe.evaluation import Evaluation
from rl.paths import REPOSITORY
from rl.verbs.evaluate import evaluate
from rollout.store import read
from tests.rewards.scorers.test_remote import Reply, service
from tests.rollout.agent.test_endpoint import answer

pytestmark = pytest.mark.slow

RECIPE = "recipes/quickstart.yaml"
SMALL = ("tasks.sources=[{environment: store}]", "tasks.eval_size=5", "eval.samples_per_task=2", "run.device=cpu")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rl.cli", "eval", RECIPE, *SMALL, *arguments]
    given = os.environ | environment
    return subprocess.run(command, cwd=REPOSITORY, env=given, capture_output=True, text=True, timeout=300)


def test_an_endpoint_is_evaluated(tmp_path: Path) -> None:
    with service(lambda number, _: (200, answer(f"answer {number % 2}"))) as (url, asked):
        ended = run(f"endpoint={url}/v1", "served=m", f"run.dir={tmp_path / 'run'}", "key_env=KEY", KEY="secret")
    assert ended.returncode == 0, ended.stderr
    assert asked[0][0]["authorization"] == "Bearer secret" and len(asked) == 10
    assert "pass@2" in ended.stdout and "0.000 (0.000–0." in ended.stdout
    found = Evaluation.load(tmp_path / "run" / "evaluations" / "step-000000.json")
    assert (len(found.samples), found.trajectories, found.lost) == (5, 10, 0)
    assert len(list(read(tmp_path / "run"))) == 5, "the episodes are in the store"


def test_an_endpoint_that_is_away_is_a_failure_and_no_zero(tmp_path: Path) -> None:
    away: Reply = (401, {"error": {"message": "wrong key"}})
    with service(lambda *_: away) as (url, _):
        ended = run(f"endpoint={url}/v1", "served=m", f"run.dir={tmp_path / 'run'}", "rollout.infra_retries=0")
    assert ended.returncode == 1 and "10 of 10 trajectories were lost to infrastructure failures" in ended.stderr
    assert "success" not in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "eval needs a recipe"),
        (["absent.yaml"], "no recipe file"),
        ([RECIPE, "endpoint=http://127.0.0.1:1"], "served=NAME"),
        ([RECIPE, "served=x"], "belong to an endpoint"),
        ([RECIPE, "endpoint=http://127.0.0.1:1", "served=x", "key_env=NO_SUCH_KEY"], "variable is not set"),
        ([RECIPE, "against=/nowhere.json"], "is no evaluation of Sluice's"),
        ([RECIPE, f"against={REPOSITORY / 'docs'}"], "there is no evaluation in it"),
        ([RECIPE, "x=1"], "unknown key 'x'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert evaluate(arguments) == 2
    assert words in capsys.readouterr().err
