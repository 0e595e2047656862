"""What is in the page, read without a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.report.packed import arrays
from rl.verbs.report import report
from rollout.store.segments import paths, seal
from tests.rl.report.made_run import ADVANTAGES, LOGPROBS, TRAINED_LOGPROBS, WORDS, make_run


def page_of(*arguments: str | Path) -> tuple[str, dict[str, Any]]:
    """The page of a run, and the data that it shows at once."""
    run = Path(arguments[0])
    assert report([str(argument) for argument in arguments]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(part(text, "data"))
    return text, data


def part(text: str, name: str) -> str:
    found = re.search(f'<script type="[^"]*" id="{name}">([^<]*)</script>', text)
    assert found, f"the page has no part {name}"
    return found[1]


def unpacked(text: str, name: str) -> bytes:
    return gzip.decompress(base64.b64decode(part(text, name)))


@pytest.mark.parametrize("sealed", [False, True])
def test_the_page_has_the_groups_with_what_the_steps_made_of_them(tmp_path: Path, sealed: bool) -> None:
    run = make_run(tmp_path / "run")
    if sealed:
        for path in paths(run / "trajectories").values():
            seal(path)
    text, data = page_of(run)
    (shown,) = data["runs"]
    assert (shown["name"], shown["total"], shown["stride"]) == ("made", 5, 1)
    first = next(group for group in shown["groups"] if group["id"] == "g2-1")
    assert (first["step"], first["task"], first["split"]) == (2, "task-1", "train")
    good, bad, failed = first["members"]
    assert (good["reward"], good["success"], good["versions"]) == (1.0, True, [0, 1])
    assert good["advantage"] == pytest.approx(np.mean(ADVANTAGES)) == -bad["advantage"]
    assert (failed["reward"], failed["outcome"], failed["advantage"]) == (None, "infra_error", None)
    evaluated = next(group for group in shown["groups"] if group["split"] == "eval")
    assert evaluated["step"] is None and evaluated["members"][0]["advantage"] is None
    messages = json.loads(unpacked(text, f"messages-0-{shown['groups'].index(first)}"))
    assert messages["members"][0]["messages"][2]["content"] == "unmistakable"
    assert messages["members"][2]["error"] == "the sandbox is gone"


def test_the_arrays_are_those_of_the_store_and_of_the_record(tmp_path: Path) -> None:
    text, data = page_of(make_run(tmp_path / "run"))
    number = [group["id"] for group in data["runs"][0]["groups"]].index("g1-0")
    content = unpacked(text, f"tokens-0-{number}")
    length = int.from_bytes(content[:4], "little")
    head = json.loads(content[4 : 4 + length])
    at, columns = 4 + length + -length % 4, {}
    for name, dtype, count in head["columns"]:
        columns[name] = np.frombuffer(content, dtype, count, at)
        at += columns[name].nbytes + -columns[name].nbytes % 4
    assert [sample["trained"] for sample in head["about"]["samples"]] == [2, 2]
    assert columns["ids"].tolist() == [0, 1, 2, 3, 4, 5, 7, 0, 1, 2, 3, 4, 6, 7]
    assert columns["logprobs"].tolist() == [*LOGPROBS, *LOGPROBS]
    assert columns["advantages"].tolist() == [*ADVANTAGES, *(-value for value in ADVANTAGES)]
    ratios = np.subtract(TRAINED_LOGPROBS, LOGPROBS).tolist()
    assert columns["log_ratios"].tolist() == [*ratios, *ratios]
    texts = json.loads(unpacked(text, "texts-0"))
    assert [texts[str(i)] for i in (0, 5, 7)] == [WORDS[0], "three", "\n"]


def test_curves_stand_in_the_order_of_the_registry_and_gaps_are_kept(tmp_path: Path) -> None:
    _, data = page_of(make_run(tmp_path / "run"))
    curves = {curve["name"]: curve for curve in data["runs"][0]["curves"]}
    assert list(curves) == ["reward/mean", "optim/grad_norm", "memory/driver_rss_mb"]
    assert curves["optim/grad_norm"]["values"] == [None, 2.0]
    assert curves["reward/mean"]["section"] == "Learning" and curves["reward/mean"]["steps"] == [1, 2]


def test_the_timeline_has_what_was_waited_for_and_who_was_under_way(tmp_path: Path) -> None:
    _, data = page_of(make_run(tmp_path / "run"))
    timeline = data["runs"][0]["timeline"]
    assert timeline["events"][0] == ["starting Ray", 0, 0.0, 30.0, ""]
    assert timeline["events"][1] == ["wait_rollouts", 1, 40.0, 46.0, "3 of 4 groups"]
    assert set(timeline["load"]) == {"generate", "reward"} and max(timeline["load"]["generate"]) == pytest.approx(4)


def test_the_ledgers_entries_of_a_task_tell_what_became_of_it(tmp_path: Path) -> None:
    text, _ = page_of(make_run(tmp_path / "run"))
    assert json.loads(unpacked(text, "ledger-0"))["task-1"] == [
        ["g1-1", "issued", "while version 0 was published"],
        ["g1-1", "finished", "segment 1, record 2; versions 0 to 0"],
        ["g1-1", "trained", "in step 1"],
        ["g2-1", "issued", "while version 1 was published"],
        ["g2-1", "finished", "segment 1, record 4; versions 0 to 1"],
        ["g2-1", "trained", "in step 2"],
    ]


def test_above_the_limit_the_page_holds_a_sample_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", groups=20)
    text, data = page_of(run, "limit_mb=0.01")
    (shown,) = data["runs"]
    assert shown["total"] == 41 and shown["stride"] in (4, 8, 16)
    assert len(shown["groups"]) == -(-41 // shown["stride"])
    packed = sum(len(found) for found in re.findall(r'id="(?:messages|tokens)-0-\d+">([^<]*)<', text))
    assert packed <= 1e4
    assert f"{len(shown['groups'])} of 41 groups, at even distances" in capsys.readouterr().out
    *_, last = shown["groups"]
    tokens = part(text, f"tokens-0-{len(shown['groups']) - 1}")
    assert tokens == part(page_of(run)[0], f"tokens-0-{40 // shown['stride'] * shown['stride']}") and last["step"] == 2


def test_a_run_that_goes_on_and_lacks_its_model_is_shown_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", summary=False)
    (run / "model" / "tokenizer.json").unlink()
    (run / "timeline.jsonl").unlink()
    text, data = page_of(run)
    assert data["runs"][0]["summary"] is None and data["runs"][0]["total"] == 5
    assert json.loads(unpacked(text, "texts-0")) == {}


@pytest.mark.parametrize("config", ["run: [broken", "run: 5\nmodel: x\n", "", "- 1\n", "run:\n  name: 7\n"])
def test_what_is_left_of_a_run_is_shown(tmp_path: Path, config: str) -> None:
    run = make_run(tmp_path / "left")
    for name in ("ledger.log", "metrics.jsonl", "timeline.jsonl", "summary.json"):
        (run / name).unlink()
    (run / "config.yaml").write_text(config)
    _, data = page_of(run)
    (shown,) = data["runs"]
    assert (shown["name"], shown["total"], shown["curves"]) == ("left", 5, [])
    assert {group["step"] for group in shown["groups"]} == {None} and shown["timeline"]["events"] == []


def test_the_page_holds_no_markup_of_the_run(tmp_path: Path) -> None:
    text, _ = page_of(make_run(tmp_path / "run", name="</script><b>"))
    assert "onerror" not in text and "<b>" not in text


def test_arrays_are_aligned_and_empty_ones_have_a_place() -> None:
    content = arrays({"a": 1}, {"x": [np.zeros(0, np.int32)], "y": [np.array([1.5], np.float16)] * 3})
    assert len(content) % 4 == 0
    length = int.from_bytes(content[:4], "little")
    described = json.loads(content[4 : 4 + length])
    assert described == {"about": {"a": 1}, "columns": [["x", "int32", 0], ["y", "float16", 3]]}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "report needs a run"),
        (["a", "b", "c"], "report needs a run"),
        (["nowhere"], "nowhere is no run directory"),
        (["RUN", "limit_mb=0"], "limit_mb='0': give a number"),
        (["RUN", "limit_mb=much"], "limit_mb='much': give a number"),
        (["RUN", "limit=3"], "limit=3 is no run directory"),
        (["RUN", "out=/nowhere/page.html"], "/nowhere/page.html cannot be written"),
    ],
)
def test_a_bad_argument_is_told_and_writes_nothing(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    before = sorted(run.iterdir())
    assert report([str(run) if argument == "RUN" else argument for argument in arguments]) == 2
    assert told in capsys.readouterr().err and sorted(run.iterdir()) == before


def test_a_damaged_ledger_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    lines = (run / "ledger.log").read_bytes().splitlines(keepends=True)
    (run / "ledger.log").write_bytes(b"".join([lines[0], b"{torn\n", *lines[1:]]))
    assert report([str(run)]) == 2
    assert "this line is damaged" in capsys.readouterr().err and not (run / "report.html").exists()
