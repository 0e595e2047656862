"""The environments that ship with Sluice, by name. A plain dict is the registry: add yours here (CONTRIBUTING.md)."""

from __future__ import annotations

from rollout.contracts import EnvironmentSpec
from rollout.envs.python import PythonQuestions
from rollout.envs.store import StoreRequests

ENVIRONMENTS: dict[str, EnvironmentSpec] = {spec.name: spec for spec in (PythonQuestions(), StoreRequests())}
