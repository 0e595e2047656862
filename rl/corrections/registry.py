"""The corrections for the gap between the sampling policy and the trained one, by name.

A correction is a function `(difference, batch, settings) -> Correction`. A new one is a file in this folder and a line
here.
"""

from __future__ import annotations

from rewards.extension import Entry, Registry

CORRECTIONS: Registry = {"none": Entry("rl.corrections.none:none")}
