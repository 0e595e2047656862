from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

from rl.observe.bottleneck import bottleneck
from rl.observe.console import Console, duration
from rl.observe.step_line import about, step_line
from rl.paths import REPOSITORY
from tests.rl.observe.console_show import VALUES, show


def test_a_step_line_by_hand() -> None:
    """Labels stand before their numbers, units behind them; the line ends with the bottleneck and the knob."""
    assert step_line(3, 60, VALUES, 200).plain == (
        " 3/60  reward  0.62  ± 0.31  success  71%  length  143  loss -0.012  Δlogprob 1.5e-07  stale 1    412 tok/s"
        "    2.3 s  ~12 min left  · waiting for rollouts → inference.replicas"
    )
    assert step_line(12, 60, VALUES, 120).plain == (
        "12/60 reward 0.62 success 71% length 143 stale 1 412 tok/s ~12 min left · waiting for rollouts → "
        "inference.replicas"
    )
    assert step_line(12, 60, VALUES, 60).plain == "12/60 r0.62 ok71% len143 old1 412t/s ~12m→inference.replicas"


ALL = ("reward/mean", "rollout/success", "rollout/tokens_mean", "staleness/max", "perf/tokens_per_s", "time/left_s")


@pytest.mark.parametrize("longest", ["time/wait_rollouts_s", "time/train_s", "time/weight_sync_s", "time/turns_s"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_at_usual_widths_one_line_has_all_that_matters(width: int, longest: str) -> None:
    values = VALUES | {longest: 100.0}
    line = step_line(12, 60, values, width).plain
    assert len(line) <= width and line.endswith(bottleneck(values).knob)
    assert re.search(r"\b(stale|old) ?1\b", line)
    numbers = ["12/60", "0.62", "71%", "412", "~12"]
    if width > 60 or longest != "time/weight_sync_s":  # whose key leaves no room for the length
        numbers.append("143")
    assert all(number in line for number in numbers)
    assert len(step_line(1234, 5000, values | {"time/left_s": 36_000.0}, width).plain) <= width


@pytest.mark.parametrize("width", range(20, 220, 7))
def test_no_line_is_longer_than_its_terminal(width: int) -> None:
    for values in (VALUES, {"reward/mean": 1.0, "time/train_s": 1.0}, {}):
        assert len(step_line(3, 60, values, width).plain) <= width


def test_a_step_that_trained_nothing_says_so() -> None:
    values = {name: VALUES[name] for name in ALL}
    assert step_line(3, 60, values, 200).plain.endswith("· nothing trained: equal rewards → rollout.group_size")
    for width in (60, 80, 120):
        assert step_line(3, 60, values, width).plain.endswith("equal rewards→rollout.group_size") or width == 120


def test_metrics_that_are_absent_are_left_out() -> None:
    assert step_line(1, 2, {"reward/mean": 1.0, "loss/policy": 0.5, "time/train_s": 1.0}, 80).plain == (
        "1/2  reward  1.00  loss +0.500  · training → trainer.ranks"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.26, "8.3 s"),
        (10, "10 s"),
        (47.4, "47 s"),
        (59.7, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "~0 s"),
        (8.26, "~8 s"),
        (59.4, "~59 s"),
        (59.6, "~1 min"),
        (740, "~12 min"),
        (3569, "~59 min"),
        (3571, "~1 h 00 min"),
        (7700, "~2 h 10 min"),
        (35_600, "~9 h 50 min"),
        (35_800, "~10 h"),
        (171_000, "~2 days"),
        (260_000, "~3 days"),
    ],
)
def test_what_is_left_is_told_roughly(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_a_pipe_gets_plain_unwrapped_lines_and_nothing_redrawn() -> None:
    stream = io.StringIO()
    with Console(steps=1, stream=stream) as console:
        show(console)
    text = stream.getvalue()
    assert not set(text) & set("\x1b\r")
    lines = text.splitlines()
    assert any(line.endswith("→ inference.replicas") for line in lines)
    assert "warning: [bold]not markup[/bold]" in lines
    assert sum("supervised cold start" in line for line in lines) == 10
    assert any(line.endswith("very/long/path") for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_the_summary_says_before_and_after() -> None:
    stream = io.StringIO()
    with Console(steps=1, stream=stream) as console:
        console.summary(
            "finished in 3 s",
            before={"held-out success": 0.31, "held-out success, store": 0.9},
            after={"held-out success": 0.86, "held-out success, store": 0.8, "held-out success, new": 0.5},
            facts={"policy version": "1"},
            places={"run directory": "/a"},
        )
    lines = stream.getvalue().splitlines()
    assert [line.replace(" " * 2, "").strip() for line in lines[:2]] == ["", "finished in 3 s"]
    assert [re.split(r" {2,}", line) for line in lines[2:] if line] == [
        ["", "held-out success", "31% →", "86%", "+55 points"],
        ["", "held-out success, store", "90% →", "80%", "-10 points"],
        ["", "held-out success, new", "50%"],
        ["", "policy version", "1"],
        ["", "run directory", "/a"],
    ]


def test_a_failed_phase_is_marked_and_raises() -> None:
    stream = io.StringIO()
    with Console(steps=1, stream=stream) as console, pytest.raises(RuntimeError), console.phase("starting Ray"):
        raise RuntimeError
    assert re.search(r"✗ starting Ray\s+0\.0 s", stream.getvalue())


def test_an_ascii_stream_gets_question_marks_instead_of_a_crash() -> None:
    raw = io.BytesIO()
    with Console(steps=1, stream=io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as console:
        console.step(1, VALUES)
    assert b"? inference.replicas" in raw.getvalue()


def test_threads_do_not_garble_lines() -> None:
    stream = io.StringIO()
    with Console(steps=400, stream=stream) as console:
        threads = [
            threading.Thread(target=lambda name=name: [console.note(name * 50) for _ in range(100)]) for name in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 400
    assert set(lines) == {name * 50 for name in "abcd"}


def test_a_terminal_gets_a_bar_and_its_cursor_back() -> None:
    output = _in_terminal("tests.rl.observe.console_show")
    assert "━" in output
    assert output.count("~12 min") > 1, "the bar says the same as the line"
    assert "\x1b[?25l" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    tail = output[output.rindex("\x1b[?25h") :]
    assert "+55 points" in tail
    assert "━" not in tail


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_a_terminal_shows_fits_it_and_breaks_no_word(width: int) -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", _in_terminal("tests.rl.observe.console_show", width))
    lines = [line.rstrip() for part in shown.split("\n") for line in part.split("\r")]
    steps = [line for line in lines if re.search(r"\b1/1\b.*→", line)]
    assert steps and all(line.endswith("inference.replicas") for line in steps)
    longer = [line for line in lines if len(line) > width and "very/long" not in line]
    assert longer == [], "only a path is never broken"
    settings = " ".join(line.strip() for line in lines if line.startswith(("  tasks", " " * 9)))
    assert "sources: [{environment: python}, {environment: store}], eval_size: 96" in settings
    assert not any(line.endswith(":") for line in lines), "a key stays with its value"
    words = {"one", "sentence", "of", "many", "words,", "end"}
    said = [line.split() for line in lines if line and set(line.split()) <= words]
    assert sum(line.count("words,") for line in said) == 8 and len(said) > 1, "sentences are broken between words"


def _in_terminal(module: str, width: int = 120) -> str:
    """Run a module on a real pseudo-terminal of that many columns and return what it writes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("COLUMNS", None)
    child = subprocess.Popen([sys.executable, "-m", module], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:
        pass  # Linux raises EIO where other systems report the end of the file
    os.close(ours)
    assert child.wait() == 0, b"".join(chunks).decode()
    return b"".join(chunks).decode()
