"""Errors that the policy did not cause, and how error messages list names.

What a policy can cause by itself never raises: it is a score of 0 or an observation.
"""

from __future__ import annotations

from collections.abc import Collection

_LISTED = 8


class InfrastructureError(RuntimeError):
    """The sandbox, the network or a service failed. The trajectory is tried again and then left out; a failure is never
    turned into a reward."""


def listed(names: Collection[str]) -> str:
    """Names for an error message, sorted; of very many the first few and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(sorted(names)[:_LISTED]) + more
