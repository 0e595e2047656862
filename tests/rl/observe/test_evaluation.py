"""An evaluation: its metrics, its table, its file, and the comparison of two."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from rl.observe.estimates import Answered
from rl.observe.evaluation import Evaluation
from rl.observe.metrics import metric_for
from rollout.types import Group, Task, Trajectory
from tests.samples import cards_of


def of(version: int = 0, lost: int = 0, **sources: list[str]) -> Evaluation:
    """One text for each task: `+` is a success, `-` none; the letter behind it the answer."""
    places = itertools.count()
    samples = {
        source: {
            f"t#{next(places)}": [Answered(a == "+", None if b == "." else b) for a, b in pairs(text)] for text in tasks
        }
        for source, tasks in sources.items()
    }
    count = sum(len(of_task) for tasks in samples.values() for of_task in tasks.values())
    return Evaluation(version, samples, count + lost, lost)


def pairs(text: str) -> list[tuple[str, str]]:
    return list(zip(text[::2], text[1::2], strict=True))


def test_metrics_are_means_over_tasks() -> None:
    values = of(python=["+a"], store=["+a-b", "-a-."], lost=1).metrics()
    assert all(metric_for(name) for name in values)
    low, high = values.pop("eval/success_low"), values.pop("eval/success_high")
    assert 0 <= low < 0.5 < high <= 1
    assert values == {
        "eval/infra_share": pytest.approx(1 / 6),
        "eval/success": 0.5,
        "eval/success/python": 1.0,
        "eval/success/store": 0.25,
        "eval/pass/2": 0.5,
        "eval/majority/2": 0.25,
    }


def test_one_sample_has_no_pass_at_k() -> None:
    assert set(of(python=["+a", "-a"]).metrics()) == {
        *("eval/infra_share", "eval/success", "eval/success_low", "eval/success_high", "eval/success/python")
    }
    assert of(python=["+a" * 6]).ks == (2, 4, 6) and of(python=["+a" * 8]).ks == (2, 4, 8)


def test_a_table_has_a_row_for_each_source_and_one_for_all() -> None:
    rows = of(store=["+a-b", "-a-."], python=["+a+a"]).table()
    assert [(row["source"], row["tasks"], row["samples"]) for row in rows] == [
        ("python", "1", "2"),
        ("store", "2", "4"),
        ("all", "3", "6"),
    ]
    assert rows[1]["pass@2"].startswith("0.500 (") and rows[1]["maj@2"].startswith("0.250 (")
    assert [row["source"] for row in of(store=["+a"]).table()] == ["store"]


def test_a_file_keeps_it(tmp_path: Path) -> None:
    made = of(7, 2, store=["+a-.", "-a-b"])
    made.save(tmp_path / "evaluations" / "step.json")
    assert Evaluation.load(tmp_path / "evaluations" / "step.json") == made


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"sources": {"a": 3}}', '{"version": 1, "sources": {"a": {"t": [1]}}}']
)
def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json is no evaluation of Sluice's"):
        Evaluation.load(tmp_path / "x.json")


def test_tasks_with_equal_ids_and_other_rows_are_not_compared() -> None:
    def evaluated(answers: str) -> Evaluation:
        tasks = [Task(id="t", environment="python", messages=(), payload={"tests": answer}) for answer in answers]
        member = Trajectory(
            task_id="t",
            group_id="g",
            samples=(),
            messages=(),
            stop_reason="answered",
            outcome="scored",
            reward=1.0,
            success=True,
        )
        cards = cards_of([Group(id="g", task=task, trajectories=(member,)) for task in tasks])
        return Evaluation.of_cards(cards, tasks, 0)

    first, second = evaluated("abc"), evaluated("abx")
    (comparison,) = second.against(first).values()
    assert comparison.difference.tasks == 2 and second.only_in_one(first) == 2
    assert evaluated("abc") == first and evaluated("xyz").against(first) == {}


def test_two_evaluations_are_compared_task_by_task() -> None:
    before, after = of(python=["-a"] * 20, store=["+a"]), of(python=["+a"] * 20, store=["+a"])
    found = after.against(before)
    assert set(found) == {"python", "store", "all"}
    assert found["python"].difference.value == 1.0 and found["python"].p < 1e-3
    assert found["all"].difference.tasks == 21 and found["store"].p == 1.0
    assert set(of(a=["+a"]).against(of(a=["-a"]))) == {"a"}
    assert of(a=["+a"]).against(Evaluation(0, {}, 0, 0)) == {}
