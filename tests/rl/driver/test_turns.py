"""Trainer and engines that take turns on the same devices: the order of the parts, and a death in each of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.driver.cluster import Cluster
from rl.driver.placement import Place, Seat, shared_seats
from rl.driver.turns import Colocated, Split
from rl.driver.waiting import ProcessFailure
from rollout.actors.process import enter_role


class Sides:
    """Writes down what both sides are asked. The part `failing` fails."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._failing = failing

    def turns(self, *, adapters: bool = False) -> Colocated:
        return Colocated(
            lambda *part: self._ask("engines", *part), lambda *part: self._ask("trainer", *part), adapters=adapters
        )

    def _ask(self, *part: Any) -> list[float]:
        if part == self._failing:
            raise RuntimeError("it has died")
        self.asked.append(part)
        return [3.0, 5.0]

    def since(self) -> list[tuple[Any, ...]]:
        asked, self.asked = self.asked, []
        return asked


FIRST = [("engines", "pause"), ("engines", "sleep", False)]
TO_TRAINER = [*FIRST, ("trainer", "reload")]
TO_PUSH = [("trainer", "offload", "optimizer"), ("engines", "wake", "weights")]
TO_ENGINES = [("trainer", "offload", "weights"), ("engines", "wake", "kv_cache"), ("engines", "resume")]


def test_a_round_of_turns_asks_for_its_parts_in_this_order() -> None:
    sides = Sides()
    turns = sides.turns()
    turns.train()
    assert sides.since() == FIRST, "the trainer has no states yet"
    turns.push()
    assert (turns.state, sides.since()) == ("pushing", TO_PUSH)
    turns.push()
    assert sides.since() == [], "a push that is repeated"
    assert turns.roll() == 5.0, "MiB of the fullest rank"
    assert (turns.state, sides.since()) == ("rolling", TO_ENGINES)
    turns.train()
    assert (turns.state, sides.since()) == ("training", TO_TRAINER)
    turns.train()
    assert sides.since() == []


def test_engines_with_a_base_model_keep_it() -> None:
    sides = Sides()
    sides.turns(adapters=True).train()
    assert ("engines", "sleep", True) in sides.asked


def test_between_steps_the_trainer_gets_a_turn_after_which_engines_have_the_weights_that_they_had() -> None:
    sides = Sides()
    turns = sides.turns()
    turns.train()
    sides.since()
    with turns.training():
        assert sides.since() == [], "it is the trainer's turn"
    assert turns.state == "training"
    turns.push(), turns.roll(), sides.since()
    with turns.training():
        assert sides.since() == [("engines", "pause"), ("engines", "sleep", True), ("trainer", "reload")]
    assert (turns.state, sides.since()) == ("rolling", [*TO_PUSH, *TO_ENGINES])


def test_turns_out_of_order_are_refused() -> None:
    turns = Sides().turns()
    for wrong in (turns.push, turns.roll):
        with pytest.raises(AssertionError, match="starting"):
            wrong()
    turns.train(), turns.push()
    with pytest.raises(AssertionError, match="pushing"):
        turns.train()


@pytest.mark.parametrize("failing", [*TO_TRAINER, *TO_PUSH, *TO_ENGINES])
def test_a_part_that_fails_ends_the_transition_there(failing: tuple[str, ...]) -> None:
    sides = Sides(failing)
    turns = sides.turns()
    transitions = [turns.train, turns.push, turns.roll] * 2
    with pytest.raises(RuntimeError, match="it has died"):
        for transition in transitions:
            before = turns.state
            transition()
    assert turns.state == before
    order = [*FIRST, *TO_PUSH, *TO_ENGINES, *TO_TRAINER]
    assert sides.asked == order[: order.index(failing)]


def test_without_sharing_there_are_no_turns() -> None:
    turns = Split()
    turns.train(), turns.push()
    assert turns.roll() is None
    with turns.training():
        pass


def test_engines_get_the_gpus_of_ranks_on_one_machine() -> None:
    seats = [Seat(node="b", gpu="1"), Seat(node="a", gpu="0"), Seat(node="b", gpu="0"), Seat(node="a", gpu="1")]
    dealt = shared_seats(seats, engines=2, width=2)
    assert [[(seat.node, seat.gpu) for seat in own] for own in dealt] == [
        [("a", "0"), ("a", "1")],
        [("b", "0"), ("b", "1")],
    ]
    assert len(shared_seats(seats, engines=1, width=1)) == 1
    with pytest.raises(ValueError, match="engine 0 would have GPUs of several machines"):
        shared_seats(seats, engines=1, width=3)
    with pytest.raises(ValueError, match="3 engines of 2 GPUs do not fit"):
        shared_seats(seats, engines=3, width=2)


class Side:
    """An engine or a trainer rank as turns see them; it dies in the part that it is told."""

    def __init__(self, role: str, logs_dir: str, dies_in: tuple[Any, ...]) -> None:
        enter_role(role, logs_dir)
        self._dies_in = dies_in

    def part(self, *part: Any) -> float:
        if part == self._dies_in:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0


@pytest.fixture
def cluster(ray_instance: None, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, "turns")
    yield cluster
    cluster._end_actors()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dying", [*TO_TRAINER, *TO_PUSH, *TO_ENGINES])
def test_a_process_that_dies_in_any_part_is_named_with_the_part(dying: tuple[Any, ...], cluster: Cluster) -> None:
    roles = {"engines": "engine-0", "trainer": "trainer-0"}
    sides = {
        side: [
            cluster.spawn(Side, role, Place(), dying[1:] if side == dying[0] else ()),
            cluster.spawn(Side, role.replace("0", "1"), Place(), ()),
        ]
        for side, role in roles.items()
    }

    def ask(side: str, *part: Any) -> Any:
        return cluster.calls.ask_all(sides[side], "part", *part, what=f"{side}: {part[0]}")

    turns = Colocated(lambda *part: ask("engines", *part), lambda *part: ask("trainer", *part), adapters=False)
    with pytest.raises(ProcessFailure, match=rf"{dying[0]}: {dying[1]}: process {roles[dying[0]]} died"):
        for transition in [turns.train, turns.push, turns.roll] * 2:
            transition()
