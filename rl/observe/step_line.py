"""The one line that a step prints: what it learned, what it cost, what held it up, and the key that would help.

It fits the terminal: where that is narrow, details go first, then labels become short, then the rest goes in the order
of its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from rl.observe.bottleneck import Bottleneck, bottleneck

DETAIL = 10
"""Fields of this rank and above are details: they are left out before any label becomes short."""
NOTHING_TRAINED = Bottleneck("nothing trained: equal rewards", "rollout.group_size")
"""What is told in place of a bottleneck when no group had anything to compare."""


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
class _Style:
    """How a line is written: with labels in full or `short`, columns that stand below each other (`padded`), a `gap`
    between fields, and a space within them or none (`tight`)."""

    short: bool
    padded: bool
    gap: str
    tight: bool = False


_STYLES = (
    _Style(short=False, padded=True, gap="  "),
    _Style(short=False, padded=False, gap=" "),
    _Style(short=True, padded=False, gap=" "),
    _Style(short=True, padded=False, gap=" ", tight=True),
)
"""From the widest to the narrowest."""


@dataclass(frozen=True, slots=True)
class _Field:
    """A part of the line, shown when the metric exists. The highest `rank` is left out first; rank 0 stays."""

    metric: str
    label: str
    short: str
    show: Callable[[float], str]
    rank: int = 0

    def text(self, value: float, style: _Style) -> Text:
        number = self.show(value) if style.padded else self.show(value).strip()
        if style.tight:
            number = number.replace(" min", "m").replace(" ", "")
        label = Text(self.short if style.short else self.label, style="dim")
        parts = [Text(number), label] if self.label in _UNIT_LAST else [label, Text(number)]
        return Text("" if style.tight else " ").join(part for part in parts if part)


_FIELDS = (
    _Field("reward/mean", "reward", "r", lambda x: f"{x:5.2f}"),
    _Field("reward/std", "±", "±", lambda x: f"{x:.2f}", 13),
    _Field("rollout/success", "success", "ok", lambda x: f"{x:4.0%}"),
    _Field("rollout/tokens_mean", "length", "len", lambda x: f"{x:4.0f}", 4),
    _Field("loss/policy", "loss", "loss", lambda x: f"{x:+.3f}", 12),
    _Field("mismatch/logprob_abs_mean", "Δlogprob", "Δ", lambda x: f"{x:.1e}", 10),
    _Field("staleness/max", "stale", "old", lambda x: f"{x:.0f}", 3),
    _Field("perf/tokens_per_s", "tok/s", "t/s", lambda x: f"{x:5.0f}", 2),
    _Field("time/step_s", "s", "s", lambda x: f"{x:5.1f}", 11),
    _Field("time/left_s", "left", "", about, 1),
)
_UNIT_LAST = {"tok/s", "s", "left"}


def step_line(step: int, total: int, values: Mapping[str, float], width: int) -> Text:
    """One line about a step, in at most `width` characters."""
    head = f"{step:>{len(str(total))}}/{total}"
    reason = bottleneck(values) if "loss/policy" in values else NOTHING_TRAINED
    for style in _STYLES:
        fields = [field for field in _FIELDS if field.metric in values]
        least = 1 if style is _STYLES[-1] else DETAIL
        while (line := _line(head, fields, values, reason, style)).cell_len > width:
            droppable = [field for field in fields if field.rank >= least]
            if not droppable:
                break
            fields.remove(max(droppable, key=lambda field: field.rank))
        else:
            return line
    line.truncate(width, overflow="ellipsis")
    return line


def _line(head: str, fields: Sequence[_Field], values: Mapping[str, float], reason: Bottleneck, style: _Style) -> Text:
    parts = [Text(head, style="bold"), *(field.text(values[field.metric], style) for field in fields)]
    line = Text(style.gap).join(parts)
    if not style.short:
        line.append_text(Text.assemble((f"{style.gap}· ", "dim"), (reason.name, "yellow"), (" → ", "dim")))
    else:
        said = " equal rewards" if reason is NOTHING_TRAINED else "" if style.tight else " "
        line.append_text(Text.assemble((said, "yellow"), ("→", "dim")))
    return line.append_text(Text(reason.knob, style="cyan"))
