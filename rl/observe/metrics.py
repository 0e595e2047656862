"""Every metric this framework logs: one registry of names, each with its unit and meaning.

`REGISTRY` is the only list: docs/metrics.md (`docs_page`) and wandb's definitions are generated from it, and logging a
name that isn't in it is an error. Nothing here computes a metric: rl.observe.stepstats, the driver and the learner do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from rl.observe.bottleneck import BOTTLENECKS


@dataclass(frozen=True, slots=True)
class Metric:
    """A name ending in `/<...>` stands for a family: any single last part is accepted in its place."""

    name: str
    unit: str
    meaning: str

    @property
    def is_family(self) -> bool:
        return self.name.endswith(">")

    @property
    def prefix(self) -> str:
        """The common start of the names in a family, slash included."""
        return self.name[: self.name.rindex("/") + 1]


_METRICS = (
    Metric("reward/mean", "reward", "Mean reward of the step's trajectories (infrastructure failures left out)."),
    Metric("reward/std", "reward", "Standard deviation of those rewards."),
    Metric("reward/part/<name>", "reward", "Mean of one named part of the reward, before its weight."),
    Metric("reward/metric/<name>", "value", "Mean of what a reward measured beside its part (`log_metric`, a judge)."),
    Metric("reward/cost_usd", "USD", "What the judge's tokens for the step's trajectories cost."),
    Metric("policy/version", "count", "Weight version after the step; the cold-started policy is version 0."),
    Metric(
        "policy/verified_engines",
        "count",
        "Engines that got that version as it was sent, by hashes; whole weights: all engines equal; 0: not verified.",
    ),
    Metric(
        "policy/read_back_tensors",
        "count",
        "Tensors of that version that its last push's engines were found to compute with; 0: checksums compared.",
    ),
    Metric("policy/engines_serving", "count", "Engines that the last push went to."),
    Metric("policy/engines_restarted", "count", "Engines that died and were started again since the run was started."),
    Metric("policy/entropy", "nats", "Mean entropy of the policy's next-token distribution at trained tokens."),
    Metric("policy/clip_fraction", "share", "Trained tokens whose importance ratio was clipped."),
    Metric("policy/rejected_fraction", "share", "Trained tokens that the correction left out of the loss."),
    Metric("policy/ratio_mean", "ratio", "Mean importance ratio: trainer's probability over the sampling policy's."),
    Metric("policy/kl_behaviour", "nats", "Estimated KL from the sampling policy to the trained one, per token."),
    Metric("policy/kl_reference", "nats", "Estimated KL (k3) between policy and reference policy, per trained token."),
    Metric("loss/policy", "loss", "The step's loss (with kl in it): the weighted sum over the trained tokens."),
    Metric("loss/<name>", "loss", "Mean per trained token of another statistic that the recipe's loss reports."),
    Metric(
        "mismatch/logprob_abs_mean",
        "nats",
        "Mean |engine logprob - trainer logprob| over tokens sampled by the very version that is being trained.",
    ),
    Metric("mismatch/fresh_tokens", "tokens", "How many tokens that comparison is over; stale ones can't be compared."),
    Metric("staleness/mean", "versions", "Mean age of the trained tokens: policy version minus sampling version."),
    Metric("staleness/max", "versions", "Age of the oldest trained token; never above buffer.max_staleness."),
    Metric(
        "staleness/superseded",
        "count",
        "Requests that engines gave up for a new adapter's room: too old to be trained. Their trajectories start over.",
    ),
    Metric("rollout/success", "share", "Trajectories of the step that solved their task."),
    Metric("rollout/trajectories", "count", "Trajectories of the step, infrastructure failures left out."),
    Metric("rollout/turns_mean", "count", "Mean number of model turns of a trajectory."),
    Metric("rollout/tokens_mean", "tokens", "Mean number of sampled tokens of a trajectory."),
    Metric("rollout/truncated_share", "share", "Trajectories cut by a turn, token or time limit."),
    Metric("rollout/malformed_share", "share", "Trajectories that ended with a tool call that can't be parsed."),
    Metric("rollout/groups_zero_variance", "share", "Groups whose rewards are all equal: they teach GRPO nothing."),
    Metric("rollout/groups_unusable", "share", "Groups that infrastructure failures left nothing to compare in."),
    Metric("rollout/dropped_stale", "count", "Groups dropped in the step because they were older than the bound."),
    Metric(
        "tokens/bridge_breaks",
        "count",
        "Times a trajectory of the step had to go on in a new sample, because its rendering no longer began with its "
        "tokens.",
    ),
    Metric("tools/calls_mean", "count", "Mean number of tool calls of a trajectory."),
    Metric("tools/error_share", "share", "Tool calls that returned an error to the model."),
    Metric("error/infra_share", "share", "Trajectories of the step's groups lost to infrastructure failures."),
    Metric("moe/load_max_over_mean", "ratio", "Busiest expert's tokens over the mean; 1 is balanced. Worst layer."),
    Metric("optim/lr", "1/step", "Learning rate of the step."),
    Metric("optim/grad_norm", "norm", "Global gradient norm before clipping."),
    Metric("rollout/skipped_rows", "count", "Rows of the training datasets that `on_bad_row: skip` left out so far."),
    Metric("perf/tokens_per_s", "tokens/s", "Trained tokens over the wall time of the step."),
    Metric("perf/trained_tokens", "tokens", "Tokens that carried loss in the step."),
    Metric("perf/sampled_tokens_per_s", "tokens/s", "Tokens the step's trajectories sampled over its wall time."),
    Metric("time/step_s", "s", "Wall time of the step."),
    Metric("time/wait_rollouts_s", "s", "Time the trainer waited for finished groups."),
    Metric("time/train_s", "s", "Forward, backward and optimizer."),
    Metric("time/weight_sync_s", "s", "Publishing the new weights; with placement=split from pause to resume."),
    Metric("time/turns_s", "s", "Handing the devices over and back, where trainer and engines take turns on them."),
    Metric("time/generate_s", "s", "Time an average trajectory spent waiting for the engine (beside the other times)."),
    Metric("time/environment_s", "s", "Time an average trajectory spent in its environment, tools and rewards."),
    Metric("time/checkpoint_s", "s", "Writing the checkpoint and export that were due after the step before this one."),
    Metric("time/eval_s", "s", "What was waited for the evaluation that was due after the step before this one."),
    Metric("time/left_s", "s", "Estimate of what is left of the run, from the recent steps, evaluations, checkpoints."),
    Metric("memory/driver_rss_mb", "MB", "Resident memory of the driver process."),
    Metric("memory/trainer_left_mb", "MiB", "Tensors that the fullest trainer rank keeps on its GPU during rollouts."),
    Metric("memory/trainer_rss_mb", "MB", "Largest resident memory among the trainer ranks."),
    Metric("eval/success", "share", "Success on a held-out task, mean over tasks (infrastructure failures left out)."),
    Metric("eval/success_low", "share", "Lower end of its interval of 95 % (tasks drawn again)."),
    Metric("eval/success_high", "share", "Upper end of that interval."),
    Metric("eval/pass/<k>", "share", "pass@k: that one of k samples is a success, without bias."),
    Metric("eval/majority/<k>", "share", "maj@k: success of the answer that most of k samples give."),
    Metric("eval/success/<source>", "share", "The same, of one task source."),
    Metric("eval/infra_share", "share", "Held-out trajectories lost to an infrastructure failure."),
)

REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
_FAMILIES = tuple(metric for metric in _METRICS if metric.is_family)

STEP_KEY = "step"
"""The one key of a metrics.jsonl line that is not a metric."""


def metric_for(name: str) -> Metric:
    """The registry entry of a concrete name. Raises ValueError, with the nearest name, if it isn't registered."""
    if name in REGISTRY and not REGISTRY[name].is_family:
        return REGISTRY[name]
    for family in _FAMILIES:
        member = name.removeprefix(family.prefix)
        if member != name and member and not set(member) & set("/<>"):
            return family
    nearest = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(
        f"metric {name!r} is not registered: {hint}A new one is added to rl/observe/metrics.py, with its unit"
    )


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError for the first name that isn't registered."""
    for name in names:
        metric_for(name)


def docs_page() -> str:
    """The text of docs/metrics.md, which `python -m rl.observe.metrics > docs/metrics.md` writes."""
    lines = [
        "# Metrics",
        "",
        "Generated by `.venv/bin/python -m rl.observe.metrics > docs/metrics.md`; a test compares the two.",
        "Each line of a run's metrics.jsonl is one JSON object: `step` and some of these. `null` is a value that was",
        "not finite. A second line with the same step adds to the first one (the final evaluation does that).",
    ]
    section = ""
    for metric in _METRICS:
        if (prefix := metric.name.split("/")[0]) != section:
            section = prefix
            lines += ["", f"## {section}", "", "| name | unit | meaning |", "|---|---|---|"]
        lines.append(f"| `{metric.name}` | {metric.unit} | {metric.meaning.replace('|', chr(92) + '|')} |")
    lines += ["", "## The bottleneck of a step", "", "| it says | turn first |", "|---|---|"]
    lines += [f"| {name} | `{knob}` |" for name, knob in BOTTLENECKS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(docs_page(), end="")
