"""Which adapters an engine holds, and which requests use each.

An adapter is named by the policy version that it makes of the base model. A request uses the newest one of its first
moment until its end. An adapter goes when no request uses it and a newer one is in use.
"""

from __future__ import annotations


class Slots:
    """The adapters of one engine, which has room for `count` of them."""

    def __init__(self, count: int) -> None:
        self.newest: int | None = None
        """The version that new requests get; None before the first."""
        self._count = count
        self._users: dict[int, set[str]] = {}
        """The requests that use each adapter that the engine holds."""

    @property
    def loaded(self) -> list[int]:
        """The versions that the engine holds, oldest first."""
        return sorted(self._users)

    def begin(self, request_id: str) -> int:
        """Note a new request. Return the version that it uses to its end."""
        assert self.newest is not None, "no adapter is in use yet"
        self._users[self.newest].add(request_id)
        return self.newest

    def end(self, request_id: str, version: int) -> None:
        """Note that a request has ended."""
        self._users.get(version, set()).discard(request_id)

    def idle(self) -> list[int]:
        """The versions that can go: nobody uses them any more, and new requests get a newer one."""
        return [v for v in self.loaded if self.newest is not None and v < self.newest and not self._users[v]]

    def crowded_out(self, version: int) -> dict[int, set[str]]:
        """The oldest versions that must go so that `version` fits in, with the requests that use them."""
        others = [v for v in self.loaded if v != version]
        surplus = others[: max(0, len(others) + 1 - self._count)]
        return {v: set(self._users[v]) for v in surplus}

    def add(self, version: int) -> None:
        """Note that the engine holds an adapter. No request gets it before `use`."""
        self._users.setdefault(version, set())

    def remove(self, version: int) -> None:
        """Note that the engine holds an adapter no more."""
        del self._users[version]

    def use(self, version: int) -> None:
        """Give new requests this version, which the engine holds."""
        assert version in self._users, f"the adapter of version {version} is not loaded"
        self.newest = version
