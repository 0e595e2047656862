"""Whose turn it is on the devices.

With `placement: colocated` trainer and engines use the same devices, one after the other:

    rolling    engines sample; the trainer's states lie on the host
    training   engines sleep; the trainer has the devices
    pushing    engines have room for weights, but no KV cache yet; of the trainer only the weights are on the devices

    (engines start) ─▶ training ─▶ pushing ─▶ rolling ─▶ training ─▶ …

A transition has several parts, and every process acknowledges one before the next begins, so that never both sides hold
what only one has room for: engines are asleep before the trainer comes back, and its weights are gone before a KV cache
is. If a process dies or refuses, the run ends with the name of the part (rl.driver.waiting); nothing goes on from half
a transition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

State = Literal["starting", "rolling", "training", "pushing"]

Ask = Callable[..., Any]
"""Calls a method of every process of one side, by name, and returns when all have answered."""


class Split:
    """Both sides have devices of their own: there are no turns."""

    def train(self, *, keep_weights: bool = False) -> None:
        """Let the trainer have the devices."""

    def push(self) -> None:
        """Let the trainer send weights to the engines."""

    def roll(self) -> float | None:
        """Let the engines sample. Returns the MiB of tensors that the fullest trainer rank then still has on its GPU;
        None where there are no turns."""
        return None

    @contextmanager
    def training(self) -> Iterator[None]:
        """A turn of the trainer after which the engines go on with the weights that they had."""
        yield


class Colocated(Split):
    """Turns on the same devices.

    Args:
        engines, trainers: ask all engines, and all trainer ranks.
        adapters: whether engines keep the base model, and get adapters only.
    """

    def __init__(self, engines: Ask, trainers: Ask, *, adapters: bool) -> None:
        self._engines, self._trainers, self._adapters = engines, trainers, adapters
        self.state: State = "starting"

    def train(self, *, keep_weights: bool = False) -> None:
        if self.state == "training":
            return
        self._expect("starting", "rolling")
        starting = self.state == "starting"  # there are no states yet
        self._engines("pause")
        self._engines("sleep", keep_weights or self._adapters)
        if not starting:
            self._trainers("reload")
        self.state = "training"

    def push(self) -> None:
        if self.state == "pushing":
            return
        self._expect("training")
        self._trainers("offload", "optimizer")
        self._engines("wake", "weights")
        self.state = "pushing"

    def roll(self) -> float:
        self._expect("pushing")
        left = self._trainers("offload", "weights")
        self._engines("wake", "kv_cache")
        self._engines("resume")
        self.state = "rolling"
        return float(max(left))

    @contextmanager
    def training(self) -> Iterator[None]:
        if self.state == "training":
            yield
            return
        self.train(keep_weights=True)
        yield
        self.push()
        self.roll()

    def _expect(self, *states: State) -> None:
        assert self.state in states, f"it is {self.state}, and this turn follows {' or '.join(states)}"
