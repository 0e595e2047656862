from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config import Recipe
from rl.observe.bottleneck import BOTTLENECKS, bottleneck
from rl.observe.metrics import REGISTRY, check_names, docs_page, metric_for
from rl.observe.metrics_log import MetricsLog, read_metrics
from rl.paths import REPOSITORY
from rl.recipe.sections import leaf_names


def test_the_docs_page_is_the_generated_one() -> None:
    assert (REPOSITORY / "docs" / "metrics.md").read_text() == docs_page(), (
        "python -m rl.observe.metrics > docs/metrics.md"
    )


def test_every_metric_has_a_known_section_a_unit_and_a_meaning() -> None:
    sections = {"reward", "policy", "loss", "mismatch", "staleness", "rollout", "tokens", "tools", "error", "moe"}
    sections |= {"optim", "perf", "time", "memory", "eval"}
    assert {name.split("/")[0] for name in REGISTRY} == sections
    assert all(metric.unit and metric.meaning.endswith(".") for metric in REGISTRY.values())


def test_an_unregistered_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'reward/mean'"):
        metric_for("reward/meen")
    with pytest.raises(ValueError, match="not registered"):
        check_names(["reward/mean", "surprise"])


def test_families_accept_one_more_part_and_nothing_else() -> None:
    assert metric_for("reward/part/tests").name == "reward/part/<name>"
    assert metric_for("eval/success").unit == "share"
    assert metric_for("eval/success/python").name == "eval/success/<source>"
    for name in ("reward/part/", "reward/part/a/b", "reward/part/<name>", "eval/success/"):
        with pytest.raises(ValueError, match="not registered"):
            metric_for(name)


def test_lines_survive_a_reopening_and_non_finite_values_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(1, {"reward/mean": 0.5, "optim/grad_norm": math.nan})
    with MetricsLog(path) as log:
        log.log(2, {"reward/mean": 0.75})
    assert json.loads(path.read_text().splitlines()[0]) == {"step": 1, "reward/mean": 0.5, "optim/grad_norm": None}
    (first, values), (second, _) = read_metrics(path)
    assert (first, second) == (1, 2)
    assert math.isnan(values["optim/grad_norm"])


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(1, {"reward/mean": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [(1, {"reward/mean": 0.5})]
    log.close()


def test_an_unregistered_name_writes_nothing(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(ValueError, match="not registered"):
        log.log(1, {"reward/mean": 1.0, "reward/nonsense": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_step_may_have_several_lines_and_the_first_step_is_0(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.log(0, {"eval/success": 0.5})
        log.log(0, {"reward/mean": 0.25})
    assert read_metrics(tmp_path / "metrics.jsonl") == [(0, {"eval/success": 0.5}), (0, {"reward/mean": 0.25})]


def test_resuming_drops_the_steps_beyond_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.log(step, {"reward/mean": float(step)})
    with MetricsLog(path) as log:
        with pytest.raises(ValueError, match=r"step 4 after step 5 .*truncate_after\(3\) to go back"):
            log.log(4, {"reward/mean": 0.0})
        log.truncate_after(3)
        log.log(4, {"reward/mean": 40.0})
    assert [(step, values["reward/mean"]) for step, values in read_metrics(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(min_value=1, max_value=30))
def test_a_half_written_last_line_is_removed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (1, 2, 3):
            log.log(step, {"reward/mean": 0.123456789, "time/step_s": 9.87654321})
    path.write_bytes(path.read_bytes()[:-cut])
    assert [step for step, _ in read_metrics(path)] == [1, 2]
    with MetricsLog(path) as log:
        log.log(3, {"reward/mean": 1.0})
    assert [step for step, _ in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("times", "name"),
    [
        ({"time/wait_rollouts_s": 3.0, "time/train_s": 1.0, "time/weight_sync_s": 0.1}, "waiting for rollouts"),
        ({"time/wait_rollouts_s": 0.5, "time/train_s": 1.0, "time/environment_s": 9.0}, "training"),
        ({"time/wait_rollouts_s": 0.1, "time/train_s": 0.2, "time/weight_sync_s": 0.3}, "weight sync"),
        ({"time/wait_rollouts_s": 3.0, "time/generate_s": 1.0, "time/environment_s": 1.5}, "environment"),
        ({"time/wait_rollouts_s": 3.0, "time/generate_s": 2.0, "time/environment_s": 1.5}, "waiting for rollouts"),
    ],
)
def test_the_bottleneck_is_where_the_time_went(times: dict[str, float], name: str) -> None:
    assert bottleneck(times).name == name


def test_every_knob_is_a_configuration_key() -> None:
    assert {knob for _, knob in BOTTLENECKS} <= set(leaf_names(Recipe))


TORN = (b"\0" * 4096 + b"\n", b'{"step": 1, "rew\n', b"[1]\n", b'{"a": 1}\n', b"\xff\xfe\n", b'{"step": 3')


@pytest.mark.parametrize("torn", TORN)
def test_lines_that_a_crash_has_torn_are_left_out_and_told(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (1, 2):
            log.log(step, {"reward/mean": step})
    whole = path.read_bytes()
    first, second = whole.splitlines(keepends=True)
    path.write_bytes(first + torn + second if torn.endswith(b"\n") else whole + torn)
    assert [step for step, _ in read_metrics(path)] == [1, 2]
    with MetricsLog(path) as log:
        assert path.read_bytes() == whole and "1 torn lines are left out" in caplog.text
        log.truncate_after(1)
    assert path.read_bytes() == first
