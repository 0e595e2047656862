"""The recipe's `sandbox:` section, used by rewards.sandbox.sandbox."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rewards.strict import StrictModel


class SandboxConfig(StrictModel):
    """Limits of one execution of untrusted code. `sandbox: unsafe-none` is short for `sandbox: {kind: unsafe-none}`."""

    shorthand: ClassVar[str | None] = "kind"

    kind: Literal["bubblewrap", "unsafe-none"] = "bubblewrap"
    wall_s: float = Field(default=10.0, gt=0)
    cpu_s: int = Field(default=5, ge=1)
    memory_mb: int = Field(default=256, ge=32)
    """MiB of each process and of all together. Where control groups count, files in memory and the kernel's buffers are
    part of it."""
    processes: int = Field(default=32, ge=1)
    file_mb: int = Field(default=16, ge=1)
    output_kb: int = Field(default=64, ge=1)
    workspace_mb: int = Field(default=1024, ge=1)
    """MiB of a workspace, a folder that lives over several executions."""
    concurrency: int = Field(default=4, ge=1)
    """Executions at once in one worker process."""
    packages: tuple[str, ...] = ()
    """Python packages, installed beside Sluice, that programs may import, as `numpy` or `sympy>=1.12`."""
    environment: str | None = None
    """A virtual environment of which programs may import everything, instead of `packages`."""
