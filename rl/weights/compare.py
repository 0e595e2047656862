"""Replicas compared by the checksums of the weights that they compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.errors import listed


def unlike(checksums: Sequence[Mapping[str, str]], numbers: Sequence[int]) -> list[str]:
    """Say of each replica that holds other weights than the first like it, bit for bit, in which tensors. Those that
    divide them among another number of workers are compared with their like. `numbers` are the engines'."""
    found, first = [], dict[frozenset[str], int]()
    for position, own in enumerate(checksums):
        workers = frozenset(name.rpartition(":")[0] for name in own)
        like = first.setdefault(workers, position)
        other = checksums[like]
        if names := [name for name in own.keys() | other.keys() if own.get(name) != other.get(name)]:
            found.append(f"engine {numbers[position]} differs from engine {numbers[like]} in {listed(names)}")
    return found
