"""This process as one rank of the learner: its device, its process groups, and its random generators."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from rl.learner.config import TrainerConfig
from rl.zero.overhead import spare_on_cpu


def open_store(listening: socket.socket, timeout_s: float) -> Any:
    """The store in which the ranks find each other, at a port that this process has bound already."""
    address, port = listening.getsockname()[:2]
    return torch.distributed.TCPStore(  # type: ignore[attr-defined]
        address,
        port,
        None,
        True,
        timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def join(device: str, trainer: TrainerConfig, timeout: timedelta) -> torch.device:
    """Join torch.distributed once per process and choose this rank's device."""
    if device == "cpu":
        torch.set_num_threads(trainer.cpu_threads)
        spare_on_cpu()
        place, backend = torch.device("cpu"), "gloo"
    else:
        place, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "nccl"
        torch.cuda.set_device(place)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it makes and keeps a plan for every length that it meets
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, and each call site would warn.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if not deepspeed.comm.is_initialized():
        # DeepSpeed would spend minutes compiling a shared-memory all-reduce with the machine's C++ compiler. Its
        # segments in /dev/shm outlive a killed rank. gloo does the same work.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    return place


def partition(config: dict[str, Any]) -> Callable[[torch.nn.Parameter], None]:
    """The function that divides a parameter among the ranks. They are divided one by one, because a large model fits
    neither a rank's memory nor its GPU."""
    zero = deepspeed.zero.Init(module=torch.nn.Module(), config_dict_or_path=config)
    return lambda parameter: zero._convert_to_zero_parameters([parameter])


def return_freed() -> None:
    """Give freed memory back to the system. Glibc keeps what reading a model and DeepSpeed's start have freed, which is
    twice the model's size for one with experts; other C libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_deadlines(timeout: timedelta) -> None:
    """Give all process groups our timeout. The groups that DeepSpeed makes (expert, data-parallel) start with torch's
    defaults (10 minutes for NCCL, 30 for gloo)."""
    for group in torch.distributed.distributed_c10d._world.pg_map:
        torch.distributed.distributed_c10d._set_pg_timeout(timeout, group)
