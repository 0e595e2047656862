"""The rewards that a task source may name, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from rewards.extension import Entry, Registry

ENVIRONMENT = "environment"
"""The name that stands for the environment's own rewards; no code here."""

REWARDS: Registry = {
    ENVIRONMENT: Entry("rewards.contracts:Reward"),
    "code": Entry("rewards.scorers.code:CodeReward"),
    "state": Entry("rewards.scorers.state:StateReward"),
}
