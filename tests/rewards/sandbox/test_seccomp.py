"""The seccomp filter's program, run by a small interpreter of the few instructions that it uses. test_sandbox.py tests
it in the kernel."""

from __future__ import annotations

import struct

import pytest

from rewards.sandbox.seccomp import program

ALLOW, EPERM = 0x7FFF0000, 0x00050001
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SHARED, PRIVATE, ANONYMOUS = 0x01, 0x02, 0x20


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Run the filter on a system call, laid out as by the kernel: number, architecture, instruction pointer, six
    arguments. Return the filter's verdict."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, arch or ARCHITECTURES[machine], 0, *padded)
    steps, at, accumulator = list(struct.iter_unpack("<HBBI", program(machine))), 0, 0
    while True:
        code, if_true, if_false, k = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:
            accumulator &= k
        elif code == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "memfd_create", "shmget", "read", "mmap"), [("x86_64", 319, 29, 0, 9), ("aarch64", 279, 194, 63, 222)]
)
def test_what_is_refused(machine: str, memfd_create: int, shmget: int, read: int, mmap: int) -> None:
    assert verdict(machine, memfd_create) == verdict(machine, shmget) == EPERM
    assert verdict(machine, read, 3, 4, 5, SHARED | ANONYMOUS) == ALLOW
    flags = {SHARED | ANONYMOUS: EPERM, PRIVATE | ANONYMOUS: ALLOW, SHARED: ALLOW, PRIVATE: ALLOW}
    for flag, expected in flags.items():
        assert verdict(machine, mmap, 0, 4096, 3, flag, 7, 0) == expected
        assert verdict(machine, mmap, 0, 4096, 3, flag | 0x8_4000, 7, 0) == expected


def test_other_sets_of_numbers_are_refused_whole() -> None:
    i386, x32 = 0x40000003, 0x4000_0000
    assert verdict("x86_64", 3, arch=i386) == EPERM
    assert verdict("x86_64", x32 | 0) == EPERM


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(ValueError, match=r"'riscv64'.*x86_64, aarch64"):
        program("riscv64")
