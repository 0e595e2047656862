"""What an evaluation found: every sample of every held-out task, metrics and a table of them, and a file to keep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.observe.estimates import Answered, Comparison, Estimate, Samples, average, compare, majority, pass_at
from rl.rundir.atomic import atomic_write_json
from rollout.cards import Card
from rollout.types import Task

ALL = "all"
"""The row of all sources in a table, where there are several."""
_FORM = 1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The samples of each task by source. `lost` of `trajectories` were infrastructure failures, and are in no number.

    A task is called by its id, its place among the held-out tasks, which are the same in every evaluation of a recipe,
    and a digest of what it asks and expects.
    """

    version: int
    sources: Mapping[str, Samples]
    trajectories: int
    lost: int

    @classmethod
    def of_cards(cls, cards: Sequence[Card], tasks: Sequence[Task], version: int) -> Evaluation:
        """Collect the cards of the held-out tasks, in the order of the tasks."""
        sources: dict[str, dict[str, list[Answered]]] = {}
        for place, (card, task) in enumerate(zip(cards, tasks, strict=True)):
            samples = [Answered(bool(t.success), t.vote) for t in card.usable]
            if samples:
                sources.setdefault(card.source, {})[f"{task.id}#{place}@{_digest(task)}"] = samples
        everything = [t for card in cards for t in card.trajectories]
        lost = sum(t.outcome == "infra_error" for t in everything)
        return cls(version, sources, len(everything), lost)

    @property
    def samples(self) -> Samples:
        """Those of all sources."""
        return {name: of_task for samples in self.sources.values() for name, of_task in samples.items()}

    def metrics(self) -> dict[str, float]:
        """The metrics `eval/*` (docs/metrics.md). Without a usable sample there is no success."""
        metrics = {"eval/infra_share": self.lost / self.trajectories if self.trajectories else 0.0}
        if not self.sources:
            return metrics
        success = average(self.samples)
        metrics |= {"eval/success": success.value, "eval/success_low": success.low, "eval/success_high": success.high}
        metrics |= {f"eval/success/{name}": average(samples).value for name, samples in sorted(self.sources.items())}
        for k in self.ks:
            if (found := pass_at(k, self.samples)) is not None:
                metrics[f"eval/pass/{k}"] = found.value
        if self.ks and (voted := majority(self.ks[-1], self.samples)) is not None:
            metrics[f"eval/majority/{self.ks[-1]}"] = voted.value
        return metrics

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of samples that pass@k is about: 2, 4, 8 … and the most that a task has; none for one sample."""
        most = max((len(of_task) for of_task in self.samples.values()), default=1)
        return (*(2**i for i in range(1, most.bit_length()) if 2**i < most), most) if most > 1 else ()

    def table(self) -> list[dict[str, str]]:
        """A row for each source, and one for all where there are several; each number with its interval."""
        rows = dict(sorted(self.sources.items())) | ({ALL: self.samples} if len(self.sources) > 1 else {})
        return [{"source": name, **self._columns(samples)} for name, samples in rows.items()]

    def only_in_one(self, other: Evaluation) -> int:
        """The number of tasks that this evaluation or the `other` has alone, because the rows are others, say."""
        return len(self.samples.keys() ^ other.samples.keys())

    def against(self, other: Evaluation) -> dict[str, Comparison]:
        """How this evaluation differs from an `other`, for each source that both have, and for all."""
        pairs = {name: (other.sources[name], self.sources[name]) for name in self.sources if name in other.sources}
        if len(pairs) != 1:
            pairs[ALL] = (other.samples, self.samples)
        found = {name: compare(first, second) for name, (first, second) in pairs.items()}
        return {name: comparison for name, comparison in found.items() if comparison is not None}

    def save(self, path: Path) -> None:
        """Write it down as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        sources = {
            source: {name: [[int(s.success), s.answer] for s in of_task] for name, of_task in samples.items()}
            for source, samples in self.sources.items()
        }
        counts = {"trajectories": self.trajectories, "lost": self.lost}
        atomic_write_json(path, {"form": _FORM, "version": self.version, "sources": sources, **counts})

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is none of ours, or cannot be read.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            sources = {source: _read_samples(samples) for source, samples in content["sources"].items()}
            return cls(content["version"], sources, content["trajectories"], content["lost"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no evaluation of Sluice's ({type(error).__name__}: {error})") from None

    def _columns(self, samples: Samples) -> dict[str, str]:
        found: dict[str, Estimate | None] = {"success": average(samples)}
        found |= {f"pass@{k}": pass_at(k, samples) for k in self.ks}
        if self.ks:
            found[f"maj@{self.ks[-1]}"] = majority(self.ks[-1], samples)
        counts = {"tasks": str(len(samples)), "samples": str(sum(map(len, samples.values())))}
        return counts | {name: "–" if value is None else str(value) for name, value in found.items()}


def _digest(task: Task) -> str:
    """8 hex digits over what a task asks and expects."""
    content = json.dumps([task.environment, task.messages, task.payload, task.metadata], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _read_samples(written: Mapping[str, Sequence[Any]]) -> Samples:
    return {name: [Answered(bool(success), answer) for success, answer in of_task] for name, of_task in written.items()}
