"""A seccomp filter: it refuses system calls of untrusted code that reach out of the sandbox, or hold uncounted memory.

Three kinds of calls fail:
- what container profiles refuse: mounts, namespaces, keys, other processes' memory and descriptors, tracing, the
  kernel's modules, clocks and accounts, and sockets of families that leave the network namespace (vsock);
- memory that `rewards.sandbox.counting` could not count, which sums the private memory of processes, while files lie on
  tmpfs of a fixed size: secret memory, System V objects, message queues, io_uring's rings, extended attributes;
- anonymous files and shared anonymous mappings, whose pages all stay as long as one of them is mapped anywhere, unless
  a control group counts them. (POSIX shared memory and semaphores, which multiprocessing uses, are files in /dev/shm.)
All other calls are allowed, so this is no defence against bugs of the kernel.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import struct

# From <linux/audit.h>: the architecture of the call numbers below. Every call of another architecture is refused.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_MACHINES = ("x86_64", "aarch64")
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "bpf": (321, 280),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "unshare": (272, 97),
    "setns": (308, 268), "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "syslog": (103, 116), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None),
    "personality": (135, 92), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "move_pages": (279, 239), "migrate_pages": (256, 238),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
"""The refused calls and their numbers on the two machines; None: there is no such call."""
_MEMFD_CREATE, _MMAP = {"x86_64": 319, "aarch64": 279}, {"x86_64": 9, "aarch64": 222}
_CLONE, _SOCKET = {"x86_64": 56, "aarch64": 220}, {"x86_64": 41, "aarch64": 198}
_CLONE3 = 435
_SHARED_ANONYMOUS = 0x01 | 0x20  # MAP_SHARED | MAP_ANONYMOUS
_NAMESPACES = 0x7E02_0000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_X32 = 0x4000_0000  # the bit in the call numbers of x86_64's x32 ABI, which reports the same architecture

# From <linux/bpf_common.h>; then the offsets of nr, arch and the low halves of args[0] and args[3] in seccomp_data
_LOAD, _AND, _RETURN, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET = 0x20, 0x54, 0x06, 0x15, 0x35, 0x45
_NR, _ARCH, _ARGUMENT_0, _ARGUMENT_3 = 0, 4, 16, 40
_ALLOW, _FAIL = 0x7FFF_0000, 0x0005_0000


@functools.cache
def program(machine: str, shared_memory: bool = False) -> bytes:
    """The filter as an array of `struct sock_filter`. With `shared_memory`, anonymous memory may be shared.

    Raises:
        ValueError: the machine's call numbers are unknown.
    """
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no seccomp filter for the machine {machine!r}; there are {', '.join(_ARCHITECTURES)}")
    code = _step(_LOAD, _ARCH) + _step(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0) + _fail(errno.EPERM)
    code += _step(_LOAD, _NR) + _step(_JUMP_GREATER_EQUAL, _X32, 0, 1) + _fail(errno.EPERM)
    for number in refused(machine, shared_memory):
        code += _step(_JUMP_EQUAL, number, 0, 1) + _fail(errno.EPERM)
    # The C library falls back to clone, whose flags can be read here.
    code += _step(_JUMP_EQUAL, _CLONE3, 0, 1) + _fail(errno.ENOSYS)
    code += _where(_CLONE[machine], _ARGUMENT_0, _step(_JUMP_SET, _NAMESPACES, 0, 1) + _fail(errno.EPERM))
    families = b"".join(_step(_JUMP_EQUAL, family, 0, 1) + _step(_RETURN, _ALLOW) for family in _FAMILIES)
    code += _where(_SOCKET[machine], _ARGUMENT_0, families + _fail(errno.EAFNOSUPPORT))
    if not shared_memory:
        shared = _step(_AND, _SHARED_ANONYMOUS) + _step(_JUMP_EQUAL, _SHARED_ANONYMOUS, 0, 1) + _fail(errno.EPERM)
        code += _where(_MMAP[machine], _ARGUMENT_3, shared)
    return code + _step(_RETURN, _ALLOW)


def refused(machine: str, shared_memory: bool) -> list[int]:
    """The numbers of the calls that are refused whatever their arguments are."""
    numbers = [pair[_MACHINES.index(machine)] for pair in _NUMBERS.values()]
    return [number for number in numbers if number is not None] + ([] if shared_memory else [_MEMFD_CREATE[machine]])


def open_filter(shared_memory: bool = False) -> int:
    """A descriptor from which `bwrap --seccomp` reads this machine's filter. The caller closes it.

    Raises:
        ValueError: as `program`.
        OSError: no descriptor is free.
    """
    code = program(platform.machine(), shared_memory)
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    os.pwrite(fd, code, 0)
    return fd


def _step(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, k)


def _fail(number: int) -> bytes:
    return _step(_RETURN, _FAIL | number)


def _where(number: int, argument: int, steps: bytes) -> bytes:
    """For the call of this number: load its argument, take the steps, and allow it after them."""
    body = _step(_LOAD, argument) + steps + _step(_RETURN, _ALLOW)
    return _step(_JUMP_EQUAL, number, 0, len(body) // 8) + body
