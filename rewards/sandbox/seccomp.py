"""A seccomp filter: it refuses system calls of untrusted code that would hold memory which nobody counts.

`rewards.sandbox.child` sums the private memory of a tree's processes, and files lie on tmpfs of a fixed size. Calls
that would hold memory outside of both fail with EPERM: anonymous files, System V objects, io_uring's rings, and shared
anonymous mappings, whose pages all stay as long as one of them is mapped anywhere. (POSIX shared memory and semaphores,
which multiprocessing uses, are files in /dev/shm.) All other calls are allowed, so this is no defence against bugs of
the kernel.
"""

from __future__ import annotations

import functools
import os
import platform
import struct

# From <linux/audit.h>: the architecture of the call numbers below. Every call of another architecture is refused.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# memfd_create, memfd_secret, shmget, msgget, semget, io_uring_setup
_REFUSED = {"x86_64": (319, 447, 29, 68, 64, 425), "aarch64": (279, 447, 194, 186, 190, 425)}
_MMAP = {"x86_64": 9, "aarch64": 222}
_SHARED_ANONYMOUS = 0x01 | 0x20  # MAP_SHARED | MAP_ANONYMOUS
_X32 = 0x4000_0000  # the bit in the call numbers of x86_64's x32 ABI, which reports the same architecture

# From <linux/bpf_common.h>; then the offsets of nr, arch and the low half of args[3] in struct seccomp_data
_LOAD, _AND, _RETURN, _JUMP_EQUAL, _JUMP_GREATER_EQUAL = 0x20, 0x54, 0x06, 0x15, 0x35
_NR, _ARCH, _FLAGS = 0, 4, 40
_ALLOW, _EPERM = 0x7FFF_0000, 0x0005_0001


@functools.cache
def program(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`. Raise ValueError for a machine whose call numbers are unknown."""
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no seccomp filter for the machine {machine!r}; there are {', '.join(_ARCHITECTURES)}")
    code = _step(_LOAD, _ARCH) + _step(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0) + _step(_RETURN, _EPERM)
    code += _step(_LOAD, _NR) + _refuse_if(_JUMP_GREATER_EQUAL, _X32)
    for number in _REFUSED[machine]:
        code += _refuse_if(_JUMP_EQUAL, number)
    code += _step(_JUMP_EQUAL, _MMAP[machine], 1, 0) + _step(_RETURN, _ALLOW)
    code += _step(_LOAD, _FLAGS) + _step(_AND, _SHARED_ANONYMOUS) + _refuse_if(_JUMP_EQUAL, _SHARED_ANONYMOUS)
    return code + _step(_RETURN, _ALLOW)


def open_filter() -> int:
    """A descriptor from which `bwrap --seccomp` reads this machine's filter. The caller closes it.

    Raises:
        ValueError: as `program`.
        OSError: no descriptor is free.
    """
    code = program(platform.machine())
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    os.pwrite(fd, code, 0)
    return fd


def _step(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, k)


def _refuse_if(jump: int, k: int) -> bytes:
    return _step(jump, k, 0, 1) + _step(_RETURN, _EPERM)
