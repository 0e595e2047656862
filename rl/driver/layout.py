"""The machine of every actor, computed before any of them starts. It knows machines and numbers, and no Ray.

On GPUs, engines take the machines that they fill best, because the GPUs of an engine lie on one machine. Trainer ranks
fill whole machines first. DeepSpeed makes an expert-parallel group of ranks that follow each other
(`deepspeed.utils.groups`), so such a group is put on one machine where one has room for all of it. Every rank, engine
and worker has a CPU core. On CPU nothing is reserved: the trainer is on the driver's machine, and so are engines, with
shared memory between them, or else they go round over all machines, beginning with another one. Workers go round over
all machines, and the buffer is beside the driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rollout.types import Device, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine: its name in Ray, its address, the cores and GPUs that it has for the run, and those that other jobs of
    a shared cluster hold."""

    id: str
    address: str
    cpus: int
    gpus: int
    taken_cpus: int = 0
    taken_gpus: int = 0

    @property
    def all_gpus(self) -> int:
        return self.gpus + self.taken_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The actors of a run. `engines` are the GPUs of each; a rank has one, and `expert_parallel` ranks form a
    group. Colocated engines have GPUs of the ranks'. On CPU engines may be `spread` over all machines where weights
    reach them there. The `late` last engines may do without a machine for now."""

    device: Device
    ranks: int
    expert_parallel: int
    engines: tuple[int, ...]
    workers: int
    buffer: bool = True
    placement: Placement = "split"
    spread: bool = False
    late: int = 0

    @property
    def first(self) -> Wanted:
        """The same without the late engines."""
        return replace(self, engines=self.engines[: len(self.engines) - self.late], late=0)

    @property
    def later(self) -> dict[int, int]:
        """The GPUs of the late engines, by their numbers."""
        return dict([*enumerate(self.engines)][len(self.engines) - self.late :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The place of each actor in the list of machines, the first of which has the driver. A late engine may have
    none."""

    trainers: tuple[int, ...]
    engines: tuple[int | None, ...]
    workers: tuple[int, ...]
    buffer: bool

    def table(self, nodes: Sequence[Node]) -> dict[str, str]:
        """By the address of each machine the actors that it has, such as `trainer-0…7, engine-0, worker-0`."""
        rows: dict[str, list[str]] = {}
        for place, node in enumerate(nodes):
            roles = ["driver", *(["buffer"] if self.buffer else [])] if place == 0 else []
            for role, places in (("trainer", self.trainers), ("engine", self.engines), ("worker", self.workers)):
                roles += _named(role, [number for number, own in enumerate(places) if own == place])
            rows.setdefault(node.address, []).extend(roles)
        if waiting := _named("engine", [number for number, own in enumerate(self.engines) if own is None]):
            rows["no machine yet"] = waiting
        return {address: ", ".join(roles) or "nothing" for address, roles in rows.items()}


class Unplaceable(ValueError):
    """The machines cannot hold the actors. The message says what is missing, and which keys need less."""


class _Room:
    """What is free on each machine while actors are placed."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.gpus = [node.gpus for node in nodes]
        self.cpus = [node.cpus for node in nodes]

    def take(self, place: int, *, gpus: int) -> int:
        self.gpus[place] -= gpus
        self.cpus[place] -= 1
        return place

    def fitting(self, width: int) -> list[int]:
        """The machines with room for an engine of so many GPUs."""
        return [place for place, free in enumerate(self.gpus) if free >= width and self.cpus[place] >= 1]

    def ranks(self, place: int, engines: int = 0, width: int = 0) -> int:
        """How many ranks a machine can hold beside so many further engines of this width."""
        return max(0, min(self.gpus[place] - engines * width, self.cpus[place] - engines))


def lay_out(nodes: Sequence[Node], wanted: Wanted) -> Layout:
    """Give every actor a machine. Whenever GPUs and cores suffice for a way to place ranks and engines, one is found.

    Args:
        nodes: the machines, that of the driver first.

    Raises:
        Unplaceable: an actor finds no machine.
    """
    if wanted.device == "cpu":
        workers = tuple(number % len(nodes) for number in range(wanted.workers))
        first = range(len(wanted.first.engines))
        engines = tuple((number + 1) % len(nodes) if wanted.spread else 0 for number in first)
        layout = Layout(trainers=(0,) * wanted.ranks, engines=engines, workers=workers, buffer=wanted.buffer)
        return _with_late(layout, wanted, late_on_cpus(len(nodes), wanted.later, engines))
    try:
        room = _Room(nodes)
        return _with_late(_on_gpus(room, wanted.first), wanted, _late_on_gpus(room, wanted.later))
    except Unplaceable as error:
        held = held_by_others(nodes)
        raise Unplaceable(f"{error}; {held}" if held else str(error)) from None


def late_on_cpus(machines: int, engines: Iterable[int], having: Collection[int]) -> dict[int, int]:
    """Machines for late engines, by their numbers: of so many machines those that have no engine."""
    return dict(zip(engines, (place for place in range(machines) if place not in having), strict=False))


def late_on_gpus(nodes: Sequence[Node], engines: Mapping[int, int]) -> dict[int, int]:
    """Machines for late engines, given the GPUs of each by its number: those with the fewest GPUs that suffice."""
    return _late_on_gpus(_Room(nodes), engines)


def _late_on_gpus(room: _Room, engines: Mapping[int, int]) -> dict[int, int]:
    found = {}
    for number, width in engines.items():
        if fitting := room.fitting(width):
            chosen = min(fitting, key=lambda place: (room.gpus[place], place))
            found[number] = room.take(chosen, gpus=width)
    return found


def _with_late(layout: Layout, wanted: Wanted, late: Mapping[int, int]) -> Layout:
    return replace(layout, engines=(*layout.engines, *(late.get(number) for number in wanted.later)))


def _on_gpus(room: _Room, wanted: Wanted) -> Layout:
    if wanted.placement == "colocated":
        trainers, seated = _colocated(room, wanted)
    else:
        seated = _engines(room, wanted)
        trainers = _ranks(wanted, _capacities(room), _in_order(room))
        for place in trainers:
            room.take(place, gpus=1)
    return Layout(
        trainers=tuple(trainers), engines=tuple(seated), workers=tuple(_workers(room, wanted)), buffer=wanted.buffer
    )


def crossing(layout: Layout, expert_parallel: int) -> list[int]:
    """The expert-parallel groups, by number, whose ranks lie on several machines."""
    starts = range(0, len(layout.trainers), expert_parallel)
    return [
        number for number, start in enumerate(starts) if len({*layout.trainers[start : start + expert_parallel]}) > 1
    ]


def _engines(room: _Room, wanted: Wanted) -> list[int]:
    """Put each engine where it costs ranks the least room, then where it leaves the fewest GPUs over.

    The room for ranks on a machine is a concave function of its engines, so taking the least loss each time leaves the
    most room in the end, where all engines are equal. Else the widest come first.
    """
    found: dict[int, list[int]] = {}
    for number, width in sorted(enumerate(wanted.engines), key=lambda one: -one[1]):
        if not (fitting := room.fitting(width)):
            raise Unplaceable(_no_engine(room, wanted, number))
        chosen = min(
            fitting,
            key=lambda place: (room.ranks(place) - room.ranks(place, 1, width), room.gpus[place] - width, -place),
        )
        found.setdefault(width, []).append(room.take(chosen, gpus=width))
    in_order = {width: iter(sorted(places)) for width, places in found.items()}
    return [next(in_order[width]) for width in wanted.engines]


def _capacities(room: _Room) -> dict[int, int]:
    return {place: room.ranks(place) for place in range(len(room.nodes))}


def _in_order(room: _Room) -> list[int]:
    """The machines in the order in which ranks fill them: whole ones first, the largest first."""
    free = _capacities(room)
    return sorted(free, key=lambda place: (room.gpus[place] < room.nodes[place].all_gpus, -free[place], place))


def _ranks(wanted: Wanted, capacities: Mapping[int, int], order: Sequence[int]) -> list[int]:
    """Place the ranks, one expert-parallel group after the other. A group that fits on no machine goes on on the
    next."""
    free, found = dict(capacities), list[int]()
    if sum(free.values()) < wanted.ranks:
        raise Unplaceable(_no_ranks(wanted, sum(free.values())))
    while len(found) < wanted.ranks:
        size = min(wanted.expert_parallel, wanted.ranks - len(found))
        whole = next((place for place in order if free[place] >= size), None)
        for _ in range(size):
            place = whole if whole is not None else next(place for place in order if free[place])
            free[place] -= 1
            found.append(place)
    return found


def _colocated(room: _Room, wanted: Wanted) -> tuple[list[int], list[int]]:
    """Place ranks in blocks that an engine's GPUs can be, and on each machine an engine for every block."""
    width = _width(wanted)
    blocks = {
        place: min(room.gpus[place] // width, room.cpus[place] // (width + 1)) for place in range(len(room.nodes))
    }
    capacities, order = {place: count * width for place, count in blocks.items()}, _in_order(room)
    if sum(capacities.values()) < wanted.ranks:
        raise Unplaceable(_no_blocks(room, wanted, sum(blocks.values())))
    trainers = _ranks(wanted, capacities, order)
    if any(count % width for count in Counter(trainers).values()):
        trainers = [place for place in order for _ in range(capacities[place])][: wanted.ranks]
    counts = Counter(trainers)
    # In the order of `rl.driver.placement.shared_seats`, which deals out the GPUs when the ranks have started.
    by_name = sorted(counts, key=lambda place: room.nodes[place].id)
    engines = [place for place in by_name for _ in range(counts[place] // width)][: len(wanted.engines)]
    for place in trainers:
        room.take(place, gpus=1)
    for place in engines:
        room.take(place, gpus=0)
    return trainers, engines


def _width(wanted: Wanted) -> int:
    """The GPUs of each engine where all have as many."""
    return max(wanted.engines, default=1)


def _workers(room: _Room, wanted: Wanted) -> list[int]:
    """Let workers go round over all machines with a free core."""
    found: list[int] = []
    while len(found) < wanted.workers:
        having = [place for place, free in enumerate(room.cpus) if free >= 1]
        if not having:
            fix = f"use rollout.workers={len(found)}, or add cores" if found else "add cores"
            raise Unplaceable(
                f"worker {len(found)} of rollout.workers={wanted.workers} finds no free CPU core on "
                f"{_all(room.nodes)}: {fix}"
            )
        found += [room.take(place, gpus=0) for place in having[: wanted.workers - len(found)]]
    return found


def _no_engine(room: _Room, wanted: Wanted, number: int) -> str:
    width, largest = wanted.engines[number], max(range(len(room.nodes)), key=lambda place: room.gpus[place])
    text = f"engine {number} needs {width} GPUs and a CPU core on one machine"
    if room.gpus[largest] >= width:
        return f"{text}, and the machines with {width} free GPUs have no free core: add cores"
    fixes = [f"inference.replicas={number}"] if number and len({*wanted.engines}) == 1 else []
    fixes += [f"inference.tensor_parallel<={room.gpus[largest]}"] if room.gpus[largest] else []
    return (
        f"{text}, and the most that is free is {room.gpus[largest]}, on {room.nodes[largest].address}: use "
        f"{' or '.join([*fixes, 'more or larger machines'])}"
    )


def _no_ranks(wanted: Wanted, free: int) -> str:
    return (
        f"trainer ranks {free} to {wanted.ranks - 1} find no GPU with a CPU core: trainer.ranks={wanted.ranks}, and "
        f"beside {len(wanted.engines)} engines with {sum(wanted.engines)} GPUs in all the machines "
        f"have room for {free}; use fewer ranks or engines, or more machines"
    )


def _no_blocks(room: _Room, wanted: Wanted, blocks: int) -> str:
    width = _width(wanted)
    return (
        f"placement=colocated: trainer.ranks={wanted.ranks} want {-(-wanted.ranks // width)} blocks of "
        f"inference.tensor_parallel={width} GPUs on one machine, each with {width + 1} CPU cores, and "
        f"{_all(room.nodes)} have {blocks}: use smaller engines, fewer ranks, or more machines"
    )


def held_by_others(nodes: Sequence[Node]) -> str:
    """What other jobs of a shared cluster hold, in words; empty if that is nothing."""
    gpus, cpus = sum(node.taken_gpus for node in nodes), sum(node.taken_cpus for node in nodes)
    return f"other jobs of the Ray cluster hold {gpus} GPUs and {cpus} CPU cores" if gpus or cpus else ""


def _all(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{node.address} ({node.gpus} GPUs, {node.cpus} cores)" for node in nodes[:8]) + (
        f" and {len(nodes) - 8} others" if len(nodes) > 8 else ""
    )


def _named(role: str, numbers: Sequence[int]) -> list[str]:
    """`trainer-0…7` for numbers that follow each other."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return [f"{role}-{first}" if first == last else f"{role}-{first}…{last}" for first, last in spans]
