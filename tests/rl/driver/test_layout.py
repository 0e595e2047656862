"""The machine of every actor, for clusters of many shapes, and with real Ray where the table says it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.driver.layout import Layout, Node, Unplaceable, Wanted, crossing, late_on_cpus, late_on_gpus, lay_out
from rl.paths import REPOSITORY


def nodes_of(*sizes: tuple[int, int]) -> list[Node]:
    """Machines of so many GPUs and cores each."""
    return [
        Node(id=f"n{i:02d}", address=f"10.0.0.{i + 1}", gpus=gpus, cpus=cpus) for i, (gpus, cpus) in enumerate(sizes)
    ]


def wanted(**changed: object) -> Wanted:
    settings = {"device": "cuda", "ranks": 1, "expert_parallel": 1, "engines": (1,), "workers": 1}
    return Wanted(**settings | changed)  # type: ignore[arg-type]


shapes = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 24)), min_size=1, max_size=5)


@given(shapes, st.integers(0, 3), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 8), st.integers(1, 9))
def test_no_machine_holds_more_than_it_has_and_a_refusal_is_right(
    sizes: list[tuple[int, int]], groups: int, expert_parallel: int, engines: int, width: int, workers: int
) -> None:
    nodes = nodes_of(*sizes)
    want = wanted(
        ranks=groups * expert_parallel,
        expert_parallel=expert_parallel,
        engines=(width,) * engines,
        workers=workers,
    )
    try:
        layout = lay_out(nodes, want)
    except Unplaceable:
        assert not possible(nodes, want)
        return
    assert (len(layout.trainers), len(layout.engines), len(layout.workers)) == (want.ranks, engines, workers)
    ranks, held, busy = map(Counter, (layout.trainers, layout.engines, layout.workers))
    for place, node in enumerate(nodes):
        assert ranks[place] + width * held[place] <= node.gpus
        assert ranks[place] + held[place] + busy[place] <= node.cpus


def possible(nodes: Sequence[Node], want: Wanted) -> bool:
    """Whether some way to divide engines among machines leaves enough GPUs and cores, by trying all of them."""
    count, width = len(want.engines), max(want.engines)
    if sum(node.cpus for node in nodes) < want.ranks + count + want.workers:
        return False
    choices = product(*(range(min(node.gpus // width, node.cpus) + 1) for node in nodes))
    return any(
        sum(min(n.gpus - e * width, n.cpus - e) for n, e in zip(nodes, engines, strict=True)) >= want.ranks
        for engines in choices
        if sum(engines) == count
    )


@given(st.integers(1, 6), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.data())
def test_on_equal_machines_groups_of_experts_stay_on_one_and_ranks_on_few(
    count: int, expert_parallel: int, width: int, data: st.DataObject
) -> None:
    engines = data.draw(st.integers(1, count * 8 // width))
    room = count * 8 - -(-engines * width // 8) * 8
    ranks = data.draw(st.integers(0, room // expert_parallel)) * expert_parallel
    want = wanted(ranks=ranks, expert_parallel=expert_parallel, engines=(width,) * engines)
    layout = lay_out(nodes_of(*[(8, 64)] * count), want)
    assert crossing(layout, expert_parallel) == []
    assert len({*layout.trainers}) == -(-ranks // 8), "ranks are on no more machines than they fill"
    assert list(layout.trainers) == sorted(layout.trainers, key=layout.trainers.index), "machine by machine"
    assert not {*layout.trainers} & {*layout.engines}


@given(st.integers(1, 4), st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=8))
def test_engines_of_different_widths_fill_machines_whenever_they_can(count: int, widths: list[int]) -> None:
    """Widths that divide each other need no more machines than their sum does."""
    nodes = nodes_of(*[(8, 64)] * count)
    if sum(widths) > 8 * count:
        with pytest.raises(Unplaceable, match=r"engine \d+ needs"):
            lay_out(nodes, wanted(ranks=0, engines=tuple(widths)))
        return
    layout = lay_out(nodes, wanted(ranks=8 * count - sum(widths), engines=tuple(widths)))
    used = Counter(layout.trainers)
    for place, width in zip(layout.engines, widths, strict=True):
        used[place] += width
    assert max(used.values()) <= 8


@given(st.integers(1, 5), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.data())
def test_colocated_engines_have_gpus_of_one_machines_ranks(
    count: int, expert_parallel: int, width: int, data: st.DataObject
) -> None:
    unit = max(expert_parallel, width)
    ranks = data.draw(st.integers(1, count * 8 // unit)) * unit
    want = wanted(
        ranks=ranks,
        expert_parallel=expert_parallel,
        engines=(width,) * (ranks // width),
        placement="colocated",
    )
    layout = lay_out(nodes_of(*[(8, 64)] * count), want)
    assert crossing(layout, expert_parallel) == []
    held = Counter(layout.engines)
    assert {place: held[place] * width for place in held} == Counter(layout.trainers)


def test_the_cluster_recipe_by_hand() -> None:
    """Four machines of 8 GPUs for 16 ranks in groups of 8 and two engines of 8."""
    nodes = nodes_of(*[(8, 64)] * 4)
    layout = lay_out(nodes, wanted(ranks=16, expert_parallel=8, engines=(8, 8), workers=6))
    assert layout == Layout(trainers=(0,) * 8 + (1,) * 8, engines=(2, 3), workers=(0, 1, 2, 3, 0, 1), buffer=True)
    assert layout.table(nodes) == {
        "10.0.0.1": "driver, buffer, trainer-0…7, worker-0, worker-4",
        "10.0.0.2": "trainer-8…15, worker-1, worker-5",
        "10.0.0.3": "engine-0, worker-2",
        "10.0.0.4": "engine-1, worker-3",
    }


def test_a_group_that_fits_on_no_machine_goes_on_on_the_next() -> None:
    layout = lay_out(nodes_of((4, 32), (4, 32), (1, 8)), wanted(ranks=8, expert_parallel=8))
    assert layout.trainers == (0,) * 4 + (1,) * 4 and layout.engines == (2,)
    assert crossing(layout, 8) == [0] and crossing(layout, 4) == []


def test_on_cpu_only_workers_are_elsewhere() -> None:
    layout = lay_out(nodes_of((0, 1), (0, 1)), wanted(device="cpu", ranks=2, engines=(1, 1), workers=3))
    assert (layout.trainers, layout.engines, layout.workers) == ((0, 0), (0, 0), (0, 1, 0))


@pytest.mark.parametrize(
    ("sizes", "want", "told"),
    [
        (
            [(8, 64), (4, 64)],
            wanted(engines=(8, 8)),
            "engine 1 needs 8 GPUs and a CPU core on one machine, and the most that is free is 4, on 10.0.0.2: use "
            "inference.replicas=1 or inference.tensor_parallel<=4 or more or larger machines",
        ),
        ([(8, 64)], wanted(ranks=8), "trainer ranks 7 to 7 find no GPU with a CPU core: trainer.ranks=8"),
        ([(8, 5)], wanted(ranks=2, workers=4), "worker 2 of rollout.workers=4 finds no free CPU core on 10.0.0.1"),
        (
            [(6, 64), (2, 64)],
            wanted(ranks=8, engines=(4, 4), placement="colocated"),
            "trainer.ranks=8 want 2 blocks of inference.tensor_parallel=4 GPUs on one machine",
        ),
    ],
)
def test_what_cannot_be_placed_says_what_is_missing(sizes: list[tuple[int, int]], want: Wanted, told: str) -> None:
    with pytest.raises(Unplaceable) as refused:
        lay_out(nodes_of(*sizes), want)
    assert told in str(refused.value)


def test_on_cpus_engines_go_round_where_weights_reach_them() -> None:
    nodes = [Node(id=str(i), address=f"10.0.0.{i}", cpus=2, gpus=0) for i in range(3)]
    on_cpu = Wanted(device="cpu", ranks=2, expert_parallel=1, engines=(1,) * 4, workers=2)
    assert lay_out(nodes, on_cpu).engines == (0, 0, 0, 0)
    assert lay_out(nodes, replace(on_cpu, spread=True)).engines == (1, 2, 0, 1)
    assert lay_out(nodes[:1], replace(on_cpu, spread=True)).engines == (0, 0, 0, 0)


def test_what_other_jobs_hold_is_not_given_away() -> None:
    shared, own = nodes_of((8, 40), (8, 40))
    nodes = [replace(shared, taken_gpus=8, taken_cpus=3), own]
    assert lay_out(nodes, wanted(ranks=8, engines=())).trainers == (1,) * 8, "a whole machine goes first"
    with pytest.raises(Unplaceable, match="other jobs of the Ray cluster hold 8 GPUs and 3 CPU cores"):
        lay_out(nodes, wanted(ranks=20))
    with pytest.raises(Unplaceable) as alone:
        lay_out([own], wanted(ranks=20))
    assert "other jobs" not in str(alone.value)


@given(shapes, st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=5), st.data())
def test_late_engines_take_what_the_others_leave_over(
    sizes: list[tuple[int, int]], widths: list[int], data: st.DataObject
) -> None:
    nodes, late = nodes_of(*sizes), data.draw(st.integers(0, len(widths) - 1))
    want = wanted(ranks=data.draw(st.integers(0, 3)), engines=tuple(widths), late=late)
    try:
        layout = lay_out(nodes, want)
    except Unplaceable:
        with pytest.raises(Unplaceable):
            lay_out(nodes, want.first)
        return
    first = lay_out(nodes, want.first)
    assert (layout.trainers, layout.workers) == (first.trainers, first.workers)
    assert layout.engines[: len(first.engines)] == first.engines and len(layout.engines) == len(widths)
    free = {place: (node.gpus, node.cpus) for place, node in enumerate(nodes)}
    taken = [*((place, 1) for place in layout.trainers), *((place, 0) for place in layout.workers)]
    taken += [(place, width) for place, width in zip(layout.engines, widths, strict=True) if place is not None]
    for place, gpus in taken:
        free[place] = (free[place][0] - gpus, free[place][1] - 1)
    assert all(gpus >= 0 and cpus >= 0 for gpus, cpus in free.values())
    for place, width in zip(layout.engines, widths, strict=True):
        assert place is not None or not any(gpus >= width and cpus >= 1 for gpus, cpus in free.values())


def test_on_cpus_a_late_engine_wants_a_machine_without_one() -> None:
    want = wanted(device="cpu", engines=(1,) * 4, late=2, spread=True)
    assert lay_out(nodes_of((0, 2)), want).engines == (0, 0, None, None)
    two = lay_out(nodes_of((0, 2), (0, 2), (0, 2)), want)
    assert two.engines == (1, 2, 0, None)
    assert two.table(nodes_of((0, 2), (0, 2), (0, 2)))["no machine yet"] == "engine-3"
    assert late_on_cpus(3, [2, 3], having=[0, 2]) == {2: 1}


def test_a_late_engine_finds_the_machine_that_it_fills_best() -> None:
    nodes = nodes_of((8, 8), (2, 8), (4, 8))
    assert late_on_gpus(nodes, {3: 2, 4: 2, 5: 8, 6: 8}) == {3: 1, 4: 2, 5: 0}


SHARED = """
import ray
import time
from pathlib import Path
from rl.driver.cluster import Cluster
from rl.recipe.hardware import missing_hardware
from rl.recipe.load import load_recipe
from dataclasses import asdict

ray.init("local", num_cpus=6, num_gpus=4, include_dashboard=False, log_to_driver=False, _temp_dir="{temp}")

@ray.remote(num_cpus=1)
class Other:
    def here(self):
        return True

others = [Other.options(num_gpus=share).remote() for share in (1, 0.5)]
assert all(ray.get([other.here.remote() for other in others]))
end = time.monotonic() + 30
while not (hardware := Cluster(Path("{temp}"), "r").look()).held and time.monotonic() < end:
    time.sleep(0.2)  # Ray tells of what is taken a little later
print(hardware)
recipe = load_recipe("recipes/quickstart.yaml", ["trainer.ranks=2", "sandbox=unsafe-none"])
print("\\n".join(missing_hardware(recipe, **asdict(hardware))))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_rays_own_numbers_say_what_other_jobs_hold() -> None:
    """Actors of somebody else have one and a half of four GPUs, so that two whole ones are left."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as temp:  # short: Ray's socket paths are limited
        done = subprocess.run(
            [sys.executable, "-c", SHARED.format(temp=temp)],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    held = "other jobs of the Ray cluster hold 2 GPUs and 2 CPU cores"
    assert f"Hardware(cpus=4, gpus=2, all_gpus=4, largest_node_gpus=4, held='{held}')" in done.stdout
    assert f"wants 3 GPUs and 4 CPU cores; here are 2 GPUs and 4 CPU cores, because {held}" in done.stdout
