"""A sender that waits to be killed: `python -m tests.rollout.transfer.shm_sender`.

Prints where its bucket lies, and whether vLLM is imported.
"""

from __future__ import annotations

import sys
import time

import torch

from rollout.transfer.shm import ShmSender


def main() -> None:
    sender = ShmSender("test")  # named, because the bucket lives as long as its sender
    bucket = sender.send([("w", torch.arange(6.0))])
    print(bucket.pid, bucket.fd, bucket.nonce, "vllm" in sys.modules, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main()
