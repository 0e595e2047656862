"""The rewards that a task source may name, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from rewards.extension import Entry, Registry

ENVIRONMENT = "environment"
"""The name of the environment's own rewards. Its entry lets a recipe name them; the class in it is never made."""

REWARDS: Registry = {
    ENVIRONMENT: Entry("rewards.contracts:Reward"),
    "code": Entry("rewards.scorers.code:CodeReward"),
    "state": Entry("rewards.scorers.state:StateReward"),
    "judge": Entry("rewards.scorers.function:FunctionReward", "rewards.scorers.config:JudgeSettings"),
    "http": Entry("rewards.scorers.function:FunctionReward", "rewards.scorers.config:HttpSettings"),
}
