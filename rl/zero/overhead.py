"""Spare a step what DeepSpeed 0.19 spends on small messages, on copies, and on questions whose answer it has.

The arithmetic stays as it is. On two ranks of the quickstart's model the first and the last are a sixth of a step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import deepspeed.utils.nvtx
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus


def spare_on_cpu() -> None:
    """Answer for the number of accelerators, for which DeepSpeed starts `numactl` four times a step, and leave out its
    marks for NVIDIA's profiler. Call it before anything else of DeepSpeed."""
    os.environ.setdefault("LOCAL_SIZE", "1")  # what it assumes where there is no numactl; for quantized gradients only
    deepspeed.utils.nvtx.enable_nvtx = False


def keep_lone_gradients(engine: Any) -> None:
    """Leave out a reduction of gradients by a single rank without ZeRO: it would copy all of them twice."""
    if torch.distributed.get_world_size() == 1:
        engine.allreduce_and_copy = lambda *_, **__: None


def gather_together(optimizer: Any) -> None:
    """Make a ZeRO-3 optimizer fetch its persistent parameters after a step in one message for each process group.

    DeepSpeed sends one for each parameter, and persistent parameters are the small ones. With quantized weights (qwZ)
    or secondary partitions (hpZ) nothing changes: there the common message would carry others than the new weights.
    """
    persistent: Sequence[Any] = getattr(optimizer, "persistent_parameters", ())
    if not persistent:
        return
    first = persistent[0]
    one_by_one = first.all_gather

    def all_gather(param_list: Sequence[Any] | None = None, async_op: bool = False, hierarchy: int = 0) -> Any:
        if param_list is not persistent or any(map(_kept_twice, persistent)):
            return one_by_one(param_list, async_op=async_op, hierarchy=hierarchy)
        absent = [parameter for parameter in persistent if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE]
        first.all_gather_coalesced(absent).wait()
        return None

    first.all_gather = all_gather  # its other callers pass lists of their own


def _kept_twice(parameter: Any) -> bool:
    return parameter.ds_secondary_tensor is not None or hasattr(parameter.ds_tensor, "ds_quant_scale")
