"""The output of a run for people: start-up phases, one line per step, a summary. It knows metrics, but computes none.

On a terminal a progress bar stays below the lines and running phases show their seconds. Into a pipe or a CI log the
same lines go out plain, uncoloured and unwrapped, and nothing is redrawn. Everything may be called from any thread.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from rl.observe.step_line import about, step_line

_LABEL_WIDTH = 30
_TOGETHER = ":\u00a0"
"""Stands for a colon and a space between which no line is broken."""


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

    def sections(self, rows: Mapping[str, str]) -> None:
        """Print `name  text` for each. On a terminal a long text goes on below itself, and is broken at spaces."""
        column = max(map(len, rows), default=0) + 4
        width = self._rich.width if self.live else sys.maxsize
        for name, text in rows.items():
            wrapped = textwrap.wrap(text.replace(": ", _TOGETHER), max(width - column, 20), break_on_hyphens=False)
            first, *others = [line.replace(_TOGETHER, ": ") for line in wrapped] or [""]
            self._print(Text.assemble("  ", (name.ljust(column - 2), "dim"), first))
            for line in others:
                self._print(Text(" " * column + line))

    def table(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Print rows that have the same columns, below their names."""
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]} if rows else {}
        for row in ({name: name for name in widths}, *rows) if rows else ():
            self._print(Text("  " + "  ".join(f"{row[name]:<{width}}" for name, width in widths.items()).rstrip()))

    def note(self, text: str) -> None:
        self._say(Text(text))

    def warn(self, text: str) -> None:
        self._say(Text.assemble(("warning: ", "bold yellow"), text))

    def error(self, text: str) -> None:
        self._errors.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=not self.live)

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

    def _say(self, text: Text) -> None:
        """Print sentences. A terminal breaks them between words."""
        self._rich.print(text, soft_wrap=not self.live)

    def _print(self, text: Text) -> None:
        self._rich.print(text, soft_wrap=True)
