"""The arithmetic of a step's metrics, kept out of the loop: from cards and learner statistics to metrics.

Pure functions. The metrics have the names of `rl.observe.metrics`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rollout.cards import Card, TrajectoryCard

EXPERT_LOAD = "moe/load_max_over_mean"
_MEANS = {
    "entropy": "policy/entropy",
    "clipped": "policy/clip_fraction",
    "ratio": "policy/ratio_mean",
    "kl": "policy/kl_behaviour",
    "kl_reference": "policy/kl_reference",
    "rejected": "policy/rejected_fraction",
}
"""The learner's sums over trained tokens whose means are metrics with names of their own."""
_NO_MEANS = {"loss", "tokens", "fresh_tokens", "mismatch", "grad_norm", "lr", "rss_mb", EXPERT_LOAD}


def rollout_metrics(cards: Sequence[Card]) -> dict[str, float]:
    """Metrics of the trajectories of a step: rewards, lengths, tools, failures."""
    everything = [t for card in cards for t in card.trajectories]
    usable = [t for t in everything if t.outcome != "infra_error"]
    metrics = {
        "rollout/trajectories": float(len(usable)),
        "error/infra_share": (len(everything) - len(usable)) / max(len(everything), 1),
    }
    if not usable:
        return metrics
    rewards = [_reward(t) for t in usable]
    calls = sum(t.metrics.get("tool_calls", 0.0) for t in usable)
    metrics |= {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "rollout/success": success_share(usable),
        "rollout/turns_mean": statistics.fmean(len(t.turns) for t in usable),
        "rollout/tokens_mean": statistics.fmean(t.trained_tokens for t in usable),
        "rollout/truncated_share": _share(t.outcome == "truncated" for t in usable),
        "rollout/malformed_share": _share(t.stop_reason == "malformed" for t in usable),
        "tokens/bridge_breaks": sum(t.metrics.get("bridge_breaks", 0.0) for t in usable),
        "tools/calls_mean": calls / len(usable),
        "tools/error_share": sum(t.metrics.get("tool_errors", 0.0) for t in usable) / max(calls, 1.0),
        "time/generate_s": _mean_metric(usable, "generate_s"),
        "time/environment_s": _mean_metric(usable, "environment_s") + _mean_metric(usable, "reward_s"),
    }
    for name in sorted({name for t in usable for name in t.reward_parts}):
        metrics[f"reward/part/{name}"] = statistics.fmean(
            t.reward_parts[name] for t in usable if name in t.reward_parts
        )
    return metrics | _measured_by_rewards(usable)


def _measured_by_rewards(trajectories: Sequence[TrajectoryCard]) -> dict[str, float]:
    """What rewards measured beside their parts: means over the trajectories that have it, and the sum of the costs."""
    found: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in trajectory.metrics.items():
            if name.startswith("reward/"):
                found.setdefault(name.removeprefix("reward/"), []).append(value)
    metrics = {f"reward/metric/{name}": statistics.fmean(found[name]) for name in sorted(found) if name != "cost_usd"}
    return metrics | ({"reward/cost_usd": sum(found["cost_usd"])} if "cost_usd" in found else {})


def success_share(trajectories: Iterable[TrajectoryCard]) -> float:
    """Share of trajectories that their source's rule calls a success; infrastructure failures are left out."""
    return _share(t.success for t in trajectories if t.success is not None)


def staleness(cards: Sequence[Card], version: int) -> tuple[float, int]:
    """Mean and maximum age, in versions, of the trainable tokens when they train policy version `version`."""
    counts: Counter[int] = Counter()
    for sample in (sample for card in cards for t in card.usable for sample in t.samples):
        for sampled_by, tokens in sample.versions.items():
            counts[version - sampled_by] += tokens
    total = counts.total()
    return (sum(age * tokens for age, tokens in counts.items()) / total, max(counts)) if total else (0.0, 0)


def learner_metrics(stats: Mapping[str, float], lr: float, version: int) -> dict[str, float]:
    """Convert the statistics of a training step (`Learner.train_step`, `make_objective`) to metrics.

    A statistic that is not known here belongs to the recipe's loss: its mean over trained tokens becomes `loss/<name>`.
    """
    tokens, fresh = max(stats["tokens"], 1.0), stats["fresh_tokens"]
    metrics = {
        "policy/version": float(version),
        "loss/policy": stats["loss"],
        "mismatch/fresh_tokens": fresh,
        "optim/lr": lr,
        "optim/grad_norm": stats["grad_norm"],
        "perf/trained_tokens": stats["tokens"],
    }
    if fresh:
        metrics["mismatch/logprob_abs_mean"] = stats["mismatch"] / fresh
    for name in stats.keys() - _NO_MEANS:
        metrics[_MEANS.get(name, f"loss/{name}")] = stats[name] / tokens
    if EXPERT_LOAD in stats:
        metrics[EXPERT_LOAD] = stats[EXPERT_LOAD]
    return metrics


def _reward(trajectory: TrajectoryCard) -> float:
    assert trajectory.reward is not None, "an infra_error has no reward; filter it out first"
    return trajectory.reward


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0


def _mean_metric(trajectories: Sequence[TrajectoryCard], name: str) -> float:
    return statistics.fmean(t.metrics.get(name, 0.0) for t in trajectories)
