"""GPT-OSS: attention sinks, experts with biases and a clamped gate, softmax over the chosen experts only.

AutoEP has no preset for its MoE block, so the experts are not split: a layer's are one tensor each, under the same name
everywhere, and ZeRO-3 partitions them as it does any other. OpenAI's own files are in MXFP4; training needs plain ones.
"""

from __future__ import annotations

from rl.families.family import Family


class GptOss(Family):
    """The family `gpt_oss`."""

    model_types = ("gpt_oss",)
