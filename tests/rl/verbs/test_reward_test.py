"""`reward-test`: trajectories of a store that is written here, scored again by functions that change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rl.recipe.resolved import save_resolved
from rl.verbs.reward_test import reward_test
from rollout.store.segments import Segment
from rollout.types import Group, StopReason, Task, Trajectory
from tests.samples import failed_trajectory
from tests.support import MODEL, recipe_of

CODE = """
def length(completions, limit, **kwargs):
    return [min(1.0, len(completions[0][-1]["content"]) / limit[0])]


def fails(completions, **kwargs):
    raise ValueError("as asked")


def longest(completions, **kwargs):
    lengths = [len(c[-1]["content"]) for c in completions]
    return [float(length == max(lengths)) for length in lengths]


def abstains(completions, **kwargs):
    return [None if completions[0][-1]["content"] == "aa" else 1.0]
"""


def trajectory(said: str | None, reward: float, stop: StopReason = "answered") -> Trajectory:
    messages = [{"role": "user", "content": "Say a."}]
    if said is not None:
        messages.append({"role": "assistant", "content": said})
    return Trajectory(
        task_id="t",
        group_id="g",
        samples=(),
        messages=tuple(messages),
        stop_reason=stop,
        outcome="scored",
        reward=reward,
        success=reward >= 1,
        reward_parts={"length": reward},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two groups: in one all rewards are equal, in the other one member was lost."""
    directory = tmp_path / "run"
    (directory / "trajectories").mkdir(parents=True)
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "Say {i}.", "limit": 4}}\n' for i in range(9)))
    source = {"environment": "tools", "dataset": str(tmp_path / "rows.jsonl"), "rewards": ["mine.py:length"]}
    made = {
        "model": {"path": str(MODEL)},
        "sandbox": "unsafe-none",
        "tasks": {"sources": [source | {"success": {"reward": 1.0}}]},
        "trainer": {"optimizer": {"lr": 1e-3}},
    }
    save_resolved(recipe_of(tmp_path, made), directory / "config.yaml")
    segment = Segment(directory / "trajectories")
    lost = failed_trajectory("t", "g", "x")
    members = ((trajectory("aa", 0.5), trajectory("aa", 0.5)), (trajectory("a", 0.25), trajectory("aaaa", 1.0), lost))
    for number, of_group in enumerate(members):
        messages = ({"role": "user", "content": "Say a."},)
        task = Task(id=f"t{number}", environment="tools", source="tools", messages=messages, metadata={"limit": 4})
        segment.append(Group(id=f"g1-{number}", task=task, trajectories=of_group), "train")
    segment.close()
    return directory


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_rewards_that_did_not_change_change_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reward_test([str(run)]) == 0
    out = told(capsys)
    assert "4 trajectories of 2 groups scored again: 0 of them change, in 0 groups" in out
    assert "groups whose rewards differ: 1 → 1 of 2" in out


def test_what_changes_is_shown_group_by_group(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run.parent / "mine.py"
    code.write_text(
        CODE.replace('len(completions[0][-1]["content"]) / limit[0]', 'len(completions[0][-1]["content"]) / 2')
    )
    assert reward_test([str(run)]) == 0
    out = told(capsys)
    assert "g1-0 · t0 · not trained reward 0.5 0.5 → 1 1 length 0.5 0.5 → 1 1" in out
    assert "g1-1 · t1 · not trained reward 0.25 1 → 0.5 1" in out
    assert "3 of them change, in 2 groups" in out and "success 0.25 → 0.75" in out


def test_other_rewards_and_weights(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    weights = "tasks.sources.0.weights={length: 0.0}"
    assert reward_test([str(run), "mine.py:length", "mine.py:abstains", weights]) == 0
    out = told(capsys)
    assert "g1-0 · t0 · not trained reward 0.5 0.5 → 0 0 g1-1" in out, "the part says nothing of it, before and now"
    assert "g1-1 · t1 · not trained reward 0.25 1 → 1 1 abstains – – → 1 1" in out
    assert reward_test([str(run), "mine.py:abstains", "tasks.sources.0.success={length: 1.0}"]) == 1
    assert "no reward gives length, which its weights or success rule name" in told(capsys)
    assert "abstains – → 1" in out and "groups whose rewards differ: 1 → 0 of 2" in out


def test_what_cannot_be_scored_is_told_and_is_no_zero(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert reward_test([str(run), "mine.py:fails"]) == 1
    out = told(capsys)
    assert "cannot be scored: 4 × CodeFailed: reward fails: ValueError: as asked" in out
    assert "0 trajectories of 2 groups scored again: 0 of them change, in 0 groups; 4 cannot be scored" in out
    assert reward_test([str(run), "state"]) == 1
    assert "it looks at the environment's final state, which is not stored" in told(capsys)


def test_the_model_and_the_rows_need_not_be_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "rows.jsonl").unlink()
    assert reward_test([str(run), "model.path=/absent/model"]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["mine.py:lenght"], "'mine.py' cannot be imported|mine.py has no 'lenght'; did you mean 'length'"),
        (["nothing"], "there is no 'nothing': Sluice has 'code', 'environment', 'http', 'judge', 'state'"),
        (["tasks.x=1"], "unknown key 'tasks.x'"),
        (["tasks.sources.0.weights.lenght=0.0"], "there is no reward part 'lenght'"),
        (["tasks.sources.0.success.lenght=1.0"], "there is no reward part 'lenght'"),
    ],
)
def test_what_is_no_reward_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    monkeypatch.chdir(run.parent)
    assert reward_test([str(run), *more]) == 2
    error = capsys.readouterr().err
    assert any(word in error for word in words.split("|")), error


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reward_test([]) == reward_test([str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_reward_of_the_whole_group_is_asked_once_for_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = f"{{name: {run.parent}/mine.py:longest, whole_group: true}}"
    assert reward_test([str(run), f"tasks.sources.0.rewards=[{whole}]", "tasks.sources.0.success={longest: 1.0}"]) == 0
    told = capsys.readouterr().out
    assert "4 trajectories of 2 groups scored again" in told and "cannot be scored" not in told
    assert "longest" in told and "0 1" in told
