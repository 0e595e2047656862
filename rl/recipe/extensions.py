"""The registry of each kind of extension, and the settings class of the extension that a section names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.extension import Registry, located, settings_class
from rewards.scorers.config import RewardSettings
from rewards.scorers.registry import REWARDS
from rewards.strict import Named
from rl.advantages.config import AdvantageSettings
from rl.advantages.registry import ADVANTAGES
from rl.corrections.config import CorrectionSettings
from rl.corrections.registry import CORRECTIONS
from rl.families.config import FamilySettings
from rl.families.registry import FAMILIES
from rl.losses.config import LossSettings
from rl.losses.registry import LOSSES
from rollout.chat.config import RendererSettings
from rollout.chat.registry import RENDERERS
from rollout.envs.config import EnvironmentSettings
from rollout.envs.registry import ENVIRONMENTS
from rollout.transfer.config import TransportSettings
from rollout.transfer.registry import TRANSPORTS

KINDS: Mapping[str, tuple[Registry, type[Named]]] = {
    AdvantageSettings.kind: (ADVANTAGES, AdvantageSettings),
    LossSettings.kind: (LOSSES, LossSettings),
    CorrectionSettings.kind: (CORRECTIONS, CorrectionSettings),
    RewardSettings.kind: (REWARDS, RewardSettings),
    EnvironmentSettings.kind: (ENVIRONMENTS, EnvironmentSettings),
    RendererSettings.kind: (RENDERERS, RendererSettings),
    TransportSettings.kind: (TRANSPORTS, TransportSettings),
    FamilySettings.kind: (FAMILIES, FamilySettings),
}


def chosen_settings(kind: str, name: object) -> type[Named]:
    """The settings class of the extension `name`; the kind's base class where `name` is no text.

    Raises:
        ValueError: there is no such extension, it cannot be imported, or its settings have the wrong base class.
    """
    registry, base = KINDS[kind]
    return settings_class(registry, name, base) if isinstance(name, str) else base


def locate_files(section: dict[str, Any], folders: tuple[Path, ...]) -> None:
    """Make the files of a user's `file.py:attribute` absolute, in place."""
    if isinstance(section.get("name"), str):
        section["name"] = located(section["name"], folders)
    if isinstance(tools := section.get("tools"), list):
        section["tools"] = [located(name, folders) if isinstance(name, str) else name for name in tools]
