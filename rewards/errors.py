"""Errors that the policy did not cause, and how error messages list names.

Nothing that a policy can cause by itself raises an error: it becomes a score of 0 or an observation.
"""

from __future__ import annotations

from collections.abc import Collection

_LISTED = 8


class InfrastructureError(RuntimeError):
    """The sandbox, the network or a service failed. The trajectory is tried again and then left out; a failure is never
    turned into a reward."""


def one_line(text: str, limit: int) -> str:
    """`text` without control characters and lone surrogates, which are shown by their escapes, in one line of at most
    `limit` characters. Whatever a model or a tool wrote may be in an error's text, and no log or terminal takes all."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown if len(text) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"


def listed(names: Collection[str]) -> str:
    """The names sorted, for an error message. A long list is cut to the first few names and a count of the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(sorted(names)[:_LISTED]) + more
