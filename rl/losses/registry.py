"""The losses that `loss:` chooses from, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from rewards.extension import Entry, Registry

LOSSES: Registry = {
    "clipped": Entry("rl.losses.clipped:clipped", "rl.losses.config:ClippedSettings"),
}
