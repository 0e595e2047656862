"""The advantage estimators, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from rewards.extension import Entry, Registry

ADVANTAGES: Registry = {
    "grpo": Entry("rl.advantages.grpo:grpo", "rl.advantages.config:GrpoSettings"),
    "reinforce": Entry("rl.advantages.reinforce:reinforce", "rl.advantages.config:ReinforceSettings"),
}
