"""Checks of what each machine says about itself: pure functions from the facts to findings.

Facts come by the machine's address, that of the driver's machine first: the others are compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

from rl.doctor.facts import UNLIMITED, Facts
from rl.doctor.finding import Finding
from rollout.types import Device

MEMORY_BYTES = 2 * 2**30
FILES, PROCESSES = 4096, 4096
FREE_SHARE = 0.9
SHOWN = 5

Found = Mapping[str, Facts]


def code(found: Found) -> Finding:
    """The same Python and the same code and locks everywhere."""
    first = next(iter(found.values()))
    wrong = [
        f"{address} has {what} {there}, and {here} is where this was started"
        for address, facts in found.items()
        for what, there, here in (("Python", facts.python, first.python), ("code", facts.code, first.code))
        if there != here
    ]
    fix = "use one working tree and one environment that all machines share, or equal ones"
    return _finding("code", wrong, f"Python {first.python} and code {first.code}{everywhere(found)}", fix)


def packages(found: Found) -> Finding:
    """The same versions of the lock's packages everywhere."""
    first = next(iter(found.values()))
    wrong = []
    for address, facts in found.items():
        different = [
            f"{name} {version} instead of {first.packages[name]}"
            for name, version in facts.packages.items()
            if version != first.packages[name]
        ]
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        wrong += [f"{address} has {', '.join(different[:SHOWN])}{more}"] if different else []
    fix = "build the environment there from the same lock (any run of launch.sh does), or share it"
    return _finding(
        "packages", wrong, f"the {len(first.packages)} packages of the lock are equal{everywhere(found)}", fix
    )


def interface(found: Found) -> Finding:
    """The interface that leads to the other machines, against the one that the environment names."""
    wrong, seen = [], set[str]()
    for address, facts in found.items():
        routes = {name for name in facts.routes.values() if name is not None}
        lost = [other for other, name in facts.routes.items() if name is None]
        wrong += [f"{address} has no route to {', '.join(lost)}: check its network"] if lost else []
        wrong += [
            f"{address} has {variable}={value}, and {' and '.join(sorted(routes)) or 'no interface of that name'} is "
            f"what leads to the others: unset it" + (f", or set it to {min(routes)}" if routes else "")
            for variable, value in facts.variables.items()
            if not fits(variable, value, routes or set(facts.interfaces), every=bool(routes))
        ]
        seen |= {f"{address} over {name}" for name in routes}
    return _finding("interface", wrong, "; ".join(sorted(seen)) or "one machine: nothing leaves it")


def fits(variable: str, value: str, interfaces: set[str], *, every: bool) -> bool:
    """Whether the variable names `every` one of the interfaces, or else one of them. gloo takes names; NCCL takes the
    beginnings of names, `=` before the list for names, and `^` before that for what is left out (NCCL's documentation
    of NCCL_SOCKET_IFNAME)."""
    left_out = value.startswith("^")
    exact = variable.startswith("GLOO") or value.removeprefix("^").startswith("=")
    words = [word for word in value.removeprefix("^").removeprefix("=").split(",") if word]
    named = {one for one in interfaces if any(one == word if exact else one.startswith(word) for word in words)}
    kept = interfaces - named if left_out and not variable.startswith("GLOO") else named
    return kept == interfaces if every else bool(kept)


def addresses(found: Found) -> Finding:
    """One family of addresses, which can be bound and are known beyond their link."""
    families = {address: "IPv6" if ":" in address else "IPv4" for address in found}
    wrong = [f"{address} cannot be bound there: {facts.binds}" for address, facts in found.items() if facts.binds]
    wrong += [
        f"{address} is link-local, which needs a scope that differs by machine: set run.host_address to a global or "
        "unique local address (fd00::/8)"
        for address in found
        if address.lower().startswith("fe80:")
    ]
    if len(set(families.values())) > 1:
        told = ", ".join(f"{address} is {family}" for address, family in families.items())
        wrong.append(f"{told}: name the machines in run.hostfile by addresses of one family")
    trapped = [f"{address} calls itself {facts.host}, which is {facts.names[0]}" for address, facts in found.items()
               if len(found) > 1 and facts.names and is_loopback(facts.names[0])]  # fmt: skip
    told = f"; {'; '.join(trapped)}: harmless, since ranks name their interface to gloo" if trapped else ""
    return _finding("addresses", wrong, f"{', '.join(sorted(set(families.values())))}{everywhere(found)}{told}")


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def gpus(found: Found, counts: Mapping[str, int], device: Device) -> Finding:
    """As many free GPUs as Ray counts on each machine. One is free when nobody else holds a tenth of its memory."""
    if device == "cpu":
        return Finding("gpu memory", True, "the run uses no GPU")
    wrong, told = [], []
    for address, facts in found.items():
        free = [left for left, total in facts.gpus if left >= FREE_SHARE * total]
        least = min((left for left, _ in facts.gpus), default=0) / 1e9
        if len(free) < counts.get(address, 0):
            wrong.append(
                f"{address}: {len(free)} of {len(facts.gpus)} GPUs are free, and {counts[address]} are the run's; the "
                f"fullest has {least:.1f} GB left: end what holds them (nvidia-smi there lists it)"
            )
        told.append(f"{address}: {len(free)} free")
    return _finding("gpu memory", wrong, "; ".join(told))


def memory(found: Found, store_bytes: int) -> Finding:
    """Free memory and the size of /dev/shm, against the object store of the run."""
    wrong = []
    for address, facts in found.items():
        if facts.memory < MEMORY_BYTES + store_bytes:
            wrong.append(
                f"{address} has {_gb(facts.memory)} of free memory, and the object store ({_gb(store_bytes)}) and the "
                f"processes beside it need more than {_gb(MEMORY_BYTES)} on top: end other programs there"
            )
        if facts.shared_memory < store_bytes:
            wrong.append(
                f"{address} has {_gb(facts.shared_memory)} of /dev/shm, and the object store needs {_gb(store_bytes)}: "
                "enlarge it (mount -o remount,size=…; docker run --shm-size=…)"
            )
    free, shared = (min(getattr(one, name) for one in found.values()) for name in ("memory", "shared_memory"))
    return _finding("memory", wrong, f"at least {_gb(free)} free, and {_gb(shared)} of /dev/shm{everywhere(found)}")


def limits(found: Found, device: Device) -> Finding:
    """Limits of open files and processes, and of locked memory where InfiniBand needs it."""
    wrong = []
    for address, facts in found.items():
        for what, have, need, option in (
            ("open files", facts.files, FILES, "-n"),
            ("processes", facts.processes, PROCESSES, "-u"),
        ):
            if have != UNLIMITED and have < need:
                wrong.append(
                    f"{address} allows {have} {what}: raise it to {need} or more (ulimit {option}, limits.conf)"
                )
        if device == "cuda" and facts.infiniband and facts.locked != UNLIMITED:
            wrong.append(
                f"{address} allows {facts.locked} bytes of locked memory, and InfiniBand wants all of it: ulimit -l "
                "unlimited (limits.conf; docker run --ulimit memlock=-1)"
            )
    least = min((facts.files for facts in found.values() if facts.files != UNLIMITED), default=None)
    return _finding("limits", wrong, f"{least if least is not None else 'any number of'} open files{everywhere(found)}")


def sandbox(found: Found, needed: bool) -> Finding:
    """bubblewrap on every machine, since each has rollout workers."""
    wrong = [f"{address}: {facts.sandbox}" for address, facts in found.items() if facts.sandbox is not None]
    return _finding("sandbox", wrong, f"bubblewrap isolates{everywhere(found)}" if needed else "the recipe needs none")


def everywhere(found: Sized) -> str:
    return f" on all {len(found)} machines" if len(found) > 1 else " here"


def _finding(name: str, wrong: Sequence[str], fine: str, fix: str = "") -> Finding:
    if not wrong:
        return Finding(name, True, fine)
    return Finding(name, False, "; ".join(wrong) + (f": {fix}" if fix else ""))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
