"""Everything that the console can show: `python -m tests.rl.observe.console_show`."""

from __future__ import annotations

from rl.observe.console import Console

VALUES = {
    "reward/mean": 0.625,
    "reward/std": 0.31,
    "rollout/success": 0.71,
    "rollout/tokens_mean": 143.2,
    "loss/policy": -0.0123,
    "mismatch/logprob_abs_mean": 1.5e-7,
    "staleness/max": 1.0,
    "perf/tokens_per_s": 412.4,
    "time/step_s": 2.34,
    "time/left_s": 740.0,
    "time/wait_rollouts_s": 1.4,
    "time/train_s": 0.6,
}


def show(console: Console) -> None:
    console.title("sluice")
    console.sections(
        {"run": "steps: 1", "tasks": "sources: [{environment: python}, {environment: store}], eval_size: 96"}
    )
    with console.phase("starting Ray"), console.phase("starting vLLM engine"):
        pass
    for step in range(1, 41):
        console.stage_step("supervised cold start", step, 40, 3.0 - step / 40)
    console.step(1, VALUES)
    console.warn("[bold]not markup[/bold]")
    console.note("one sentence of many words, " * 8 + "end")
    console.summary(
        "done: 1 step",
        before={"held-out success": 0.31},
        after={"held-out success": 0.86},
        facts={"policy version": "1"},
        places={"run directory": "/a/" + "very/long/" * 30 + "path"},
    )


if __name__ == "__main__":
    with Console(steps=1) as console:
        show(console)
