"""The output of a run for people: start-up phases, one line per step, a summary. It knows metrics, but computes none.

On a terminal a progress bar stays below the lines and running phases show their seconds. Into a pipe or a CI log the
same lines go out plain, uncoloured and unwrapped, and nothing is redrawn. Everything may be called from any thread.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.console import Group as RichGroup
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rl.observe.bottleneck import bottleneck

_LABEL_WIDTH = 30


def duration(seconds: float) -> str:
    """`8.3 s`, `47 s`, `3 min 12 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def about(seconds: float) -> str:
    """A rough duration: `~8 s`, `~12 min`, `~2 h 10 min`, `~14 h`, `~3 days`."""
    if (whole := round(seconds)) < 60:
        return f"~{whole} s"
    if (minutes := round(seconds / 60)) < 60:
        return f"~{minutes} min"
    if (tens := round(seconds / 600)) < 60:
        return f"~{tens // 6} h {tens % 6}0 min"
    if (hours := round(seconds / 3600)) < 48:
        return f"~{hours} h"
    return f"~{round(seconds / 86400)} days"


@dataclass(frozen=True, slots=True)
class _Field:
    """A part of the step line, shown when the metric exists. On a narrow terminal, fields with the highest `rank` are
    dropped first; rank 0 is never dropped."""

    metric: str
    label: str
    show: Callable[[float], str]
    rank: int = 0


_FIELDS = (
    _Field("reward/mean", "reward", lambda x: f"{x:5.2f}"),
    _Field("reward/std", "±", lambda x: f"{x:.2f}", 5),
    _Field("rollout/success", "success", lambda x: f"{x:4.0%}"),
    _Field("loss/policy", "loss", lambda x: f"{x:+.3f}", 6),
    _Field("mismatch/logprob_abs_mean", "Δlogprob", lambda x: f"{x:.1e}", 3),
    _Field("staleness/max", "stale", lambda x: f"{x:.0f}", 4),
    _Field("perf/tokens_per_s", "tok/s", lambda x: f"{x:5.0f}", 2),
    _Field("time/step_s", "s", lambda x: f"{x:5.1f}"),
    _Field("time/left_s", "left", about, 1),
)
_UNIT_LAST = {"tok/s", "s", "left"}


def step_line(step: int, total: int, values: Mapping[str, float], width: int) -> Text:
    """One line about a step, in at most `width` characters if possible. It always has the bottleneck and its knob."""
    where, knob = bottleneck(values)
    head = f"{step:>{len(str(total))}}/{total}"
    fields = [field for field in _FIELDS if field.metric in values]
    while True:
        line = Text("  ").join(
            [Text(head, style="bold"), *(_field_text(field, values[field.metric]) for field in fields)]
        )
        line.append_text(Text.assemble(("  · ", "dim"), (where, "yellow"), (" → ", "dim"), (knob, "cyan")))
        droppable = [field for field in fields if field.rank]
        if line.cell_len <= width or not droppable:
            return line
        fields.remove(max(droppable, key=lambda field: field.rank))


def _field_text(field: _Field, value: float) -> Text:
    number = (field.show(value), "")
    label = (field.label, "dim")
    return Text.assemble(number, " ", label) if field.label in _UNIT_LAST else Text.assemble(label, " ", number)


class _Left(TimeRemainingColumn):
    """The time left of a bar: what the bar's field `left` says, or else what rich makes of the speed so far."""

    def render(self, task: Task) -> Text:
        told = task.fields.get("left")
        return super().render(task) if told is None else Text(told, style="progress.remaining")


class Console:
    """The one writer to the run's standard output. Use as a context manager, or call `close`."""

    def __init__(self, *, steps: int, stream: TextIO | None = None) -> None:
        errors = sys.stderr if stream is None else stream
        stream = sys.stdout if stream is None else stream
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII locale must not turn "→" into a crash
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._steps = steps
        self._rich = RichConsole(
            file=stream, force_terminal=self.live, no_color=None if self.live else True, highlight=False, soft_wrap=True
        )
        # A display that moves cannot share its terminal with another writer.
        self._errors = self._rich if self.live else RichConsole(file=errors, no_color=True, highlight=False)
        self._phases = Progress(
            SpinnerColumn(style="cyan"), TextColumn("{task.description} …"), TimeElapsedColumn(), console=self._rich
        )
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            _Left(),
            console=self._rich,
            expand=True,
        )
        self._training: TaskID | None = None
        self._stage: TaskID | None = None
        self._display = Live(RichGroup(self._phases, self._bars), console=self._rich, refresh_per_second=4)
        if self.live:
            self._display.start()

    def title(self, text: str) -> None:
        self._print(Text(text, style="bold"))

    def settings(self, rows: Mapping[str, str]) -> None:
        """Print aligned `name  value` lines, such as the derived batch arithmetic or the paths of the results."""
        for name, value in rows.items():
            self._print(Text.assemble("  ", (f"{name:<{_LABEL_WIDTH}}", "dim"), value))

    def note(self, text: str) -> None:
        self._print(Text(text))

    def warn(self, text: str) -> None:
        self._print(Text.assemble(("warning: ", "bold yellow"), text))

    def error(self, text: str) -> None:
        self._errors.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase of start-up, or an evaluation: its seconds while it runs, and its duration when it ends."""
        start = time.monotonic()
        task = self._phases.add_task(name) if self.live else None
        if not self.live:
            self._print(Text(f"  {name} …"))
        mark, style = "✗", "red"
        try:
            yield
            mark, style = "✓", "green"
        finally:
            if task is not None:
                self._phases.remove_task(task)
            took = duration(time.monotonic() - start)
            self._print(Text.assemble((f"{mark} ", style), f"{name:<{_LABEL_WIDTH}} ", (took, "dim")))

    def stage_step(self, stage: str, step: int, total: int, loss: float) -> None:
        """Show progress of a stage before the training steps. Into a pipe, only about ten lines are printed."""
        if self.live:
            if self._stage is None:
                self._stage = self._bars.add_task(stage, total=total)
            self._bars.update(self._stage, completed=step, description=f"{stage}  loss {loss:.3f}")
        if step == total and self._stage is not None:
            self._bars.remove_task(self._stage)
            self._stage = None
        if step == total or (not self.live and step % max(total // 10, 1) == 0):
            self._print(Text(f"  {stage} {step:>{len(str(total))}}/{total}  loss {loss:.3f}"))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Print the line of one training step. `values` are the step's metrics under their registered names."""
        if self.live:
            if self._training is None:
                self._training = self._bars.add_task("training", total=self._steps, completed=step - 1)
            left = about(values["time/left_s"]) if "time/left_s" in values else None
            self._bars.update(self._training, completed=step, left=left)
        self._print(step_line(step, self._steps, values, self._rich.width if self.live else sys.maxsize))

    def summary(
        self,
        headline: str,
        *,
        before: Mapping[str, float],
        after: Mapping[str, float],
        facts: Mapping[str, str],
        places: Mapping[str, str],
    ) -> None:
        """Print the end of a run. `before` and `after` are shares by label ("held-out success", a task source, …)."""
        self._stop()
        self._print(Text())
        self._print(Text(headline, style="bold"))
        for label, value in after.items():
            row = Text.assemble("  ", (f"{label:<{_LABEL_WIDTH}}", "dim"))
            if label in before:
                gain = 100 * (value - before[label])
                row.append_text(Text.assemble(f"{before[label]:4.0%} → ", (f"{value:4.0%}", "bold")))
                row.append(f"   {gain:+.0f} points", style="green" if gain > 0 else "yellow")
            else:
                row.append(f"{value:4.0%}", style="bold")
            self._print(row)
        self.settings(facts)
        if places:
            self._print(Text())
            self.settings(places)

    def close(self) -> None:
        """Remove the progress bar. Idempotent."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        if self._display.is_started:
            for progress in (self._phases, self._bars):
                for task in progress.task_ids:
                    progress.remove_task(task)
            self._display.stop()

    def _print(self, text: Text) -> None:
        self._rich.print(text, soft_wrap=True)
