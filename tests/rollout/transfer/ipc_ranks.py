"""Trainer ranks that lend buckets to engines in another process, on a CPU: shared memory takes the place of a GPU's."""

from __future__ import annotations

import mmap
import os
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from rollout.transfer.bucket import digests_of
from rollout.transfer.ipc import Handle, IpcSender, _gathered

Pairs = list[tuple[str, Tensor]]


class SharedPages:
    """Memory that one process lends and another maps. What the lender writes later is seen, as on a GPU."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.taken_back = 0

    def take_back(self, handle: Handle) -> None:
        assert handle[0] == os.getpid()
        self.taken_back += 1

    def lend(self, packed: Tensor) -> Handle:
        fd, size = packed.untyped_storage()._share_fd_cpu_()
        return os.getpid(), fd, size

    def open(self, handle: Handle) -> Tensor:
        pid, fd, size = handle
        with open(f"/proc/{pid}/fd/{fd}", "r+b") as file:
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def buckets(rank: int) -> list[Pairs]:
    """What a rank has gathered. Ranks have the same in a run; here each adds its number, to be told apart."""
    return [
        [
            (f"{number}.half", torch.arange(3, dtype=torch.bfloat16) + rank),
            (f"{number}.whole", torch.arange(6, dtype=torch.float32).reshape(2, 3) * number + rank),
            (f"{number}.turned", (torch.arange(12.0).reshape(3, 4) + rank).t()),
            (f"{number}.none", torch.empty(0, 4)),
            (f"{number}.number", torch.tensor(float(number + rank))),
        ]
        for number in range(4)
    ]


def rank(number: int, world: int, store: str, pipe: Connection) -> None:
    """Send every bucket from rank 0, and go on when the engines have answered. At the third, the push has failed. Tell
    how many buckets were taken back in the end."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    pages = SharedPages(f"gpu-{number}")
    sender: Any = IpcSender(pages, _gathered, first=number == 0)
    for place, bucket in enumerate(buckets(number)):
        if number == 0 and place != 2:
            pipe.send(sender.send(bucket, digests_of(bucket) if place == 0 else ()))
            pipe.recv()
        else:
            sender.follow(bucket)
    sender.rest()
    pipe.send(pages.taken_back)
    torch.distributed.destroy_process_group()
