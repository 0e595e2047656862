"""The environments, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from rewards.extension import Entry, Registry, make
from rollout.contracts import EnvironmentSpec
from rollout.envs.config import EnvironmentSettings

ENVIRONMENTS: Registry = {
    "python": Entry("rollout.envs.python:PythonQuestions", "rollout.envs.config:PythonSettings"),
    "store": Entry("rollout.envs.store:StoreRequests"),
    "tools": Entry("rollout.envs.plain:PlainTasks", "rollout.envs.config:PlainSettings"),
    "reasoning": Entry("rollout.envs.reasoning:ReasoningTasks", "rollout.envs.config:ReasoningSettings"),
}


def make_environment(settings: EnvironmentSettings) -> EnvironmentSpec:
    """Make the specification of the environment that a task source names.

    Raises:
        ValueError: there is no such environment, or it cannot be imported or made.
    """
    spec: EnvironmentSpec = make(ENVIRONMENTS, settings.adapter or settings.name, settings)
    return spec
