"""What stands for an object of the answer, on the side of the tests."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Requester(Protocol):
        """The part of a peer that a proxy uses."""

        operators: bool

        def request(self, operation: str, number: int, name: str, *values: Any) -> Any: ...


CALL, GET, SET, DELETE, NEXT = "call", "get", "set", "delete", "next"
"""The operations on an object of the other side."""


PLAIN_NAMES = {
    name for kind in (str, bytes, list, tuple, dict, set, int, float) for name in dir(kind) if name[:1] != "_"
} | {"equals", "equal", "eq", "allclose", "isclose", "matches"}
"""Methods of plain values. Most are shown what a test expects."""


class Proxy:
    """Stands for an object of the answer. What is done to it is done there, and the result is a plain value or another
    proxy. It equals no plain value, and another proxy only if the answer says so. Nor is it compared, added to or
    searched for plain values: an object that is shown what is expected can agree to all of it."""

    __slots__ = ("_sluice_kind", "_sluice_number", "_sluice_peer")

    def __init__(self, peer: Requester, number: int, kind: str) -> None:
        object.__setattr__(self, "_sluice_peer", peer)
        object.__setattr__(self, "_sluice_number", number)
        object.__setattr__(self, "_sluice_kind", kind)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _ask(self, CALL, "", arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__", "__qualname__"):
            raise AttributeError(name)
        if name in PLAIN_NAMES and not _peer_of(self).operators:
            raise AttributeError(f"an object of the answer is no plain value, so it has no {name}")
        return _ask(self, GET, name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise TypeError("a class cannot be derived from one of the answer's: it is in another process")

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, SET, name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, DELETE, name)

    def __next__(self) -> Any:
        return _ask(self, NEXT, "")

    def __bool__(self) -> bool:
        # Python's own rule: __bool__, else __len__, else true.
        for name in ("__bool__", "__len__"):
            if _has(self, name):
                return bool(_plain(self, name, int))
        return True

    def __eq__(self, other: object) -> bool:
        if type(other) is not Proxy:
            return False
        return self is other or _ask(self, CALL, "__eq__", (other,), {}) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((number_of(self), "sluice"))

    def __iter__(self) -> Any:
        return _special(self, "__iter__")

    def __len__(self) -> int:
        return int(_plain(self, "__len__", int))

    def __str__(self) -> str:
        return str(_plain(self, "__str__", str))

    def __repr__(self) -> str:
        return str(_plain(self, "__repr__", str))

    def __instancecheck__(self, instance: Any) -> bool:
        return type(instance) is Proxy and _ask(self, CALL, "__instancecheck__", (instance,), {}) is True


def _ask(proxy: Proxy, operation: str, name: str, *values: Any) -> Any:
    return _peer_of(proxy).request(operation, number_of(proxy), name, *values)


def _peer_of(proxy: Proxy) -> Requester:
    peer: Requester = object.__getattribute__(proxy, "_sluice_peer")
    return peer


def number_of(proxy: Any) -> int:
    number: int = object.__getattribute__(proxy, "_sluice_number")
    return number


def _has(proxy: Proxy, name: str) -> bool:
    try:
        _ask(proxy, GET, name)
    except AttributeError:
        return False
    return True


def _special(proxy: Proxy, name: str) -> Any:
    """Call a special method. Where there is none, Python expects a TypeError."""
    try:
        return _ask(proxy, CALL, name, (), {})
    except AttributeError as error:
        raise TypeError(str(error)) from None


def _plain(proxy: Proxy, name: str, kind: type) -> Any:
    value = _special(proxy, name)
    if not isinstance(value, kind):
        raise TypeError(f"{name} returned no {kind.__name__}")
    return value


def _forwarded(name: str, tells: bool) -> Any:
    """The special method of this name. One that `tells` the answer what the tests expect is asked of instances of a
    class that the row names only, unless the other operand is the answer's, too."""

    def method(self: Proxy, *arguments: Any) -> Any:
        if tells and not all(type(argument) is Proxy for argument in arguments) and not _peer_of(self).operators:
            raise TypeError(f"an object of the answer takes no part in {name} with a plain value")
        try:
            return _ask(self, CALL, name, arguments, {})
        except AttributeError:
            return NotImplemented

    method.__name__ = name
    return method


TELLING = (
    "lt le gt ge contains add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod divmod "
    "pow rpow matmul and or xor lshift rshift"
)
OTHERS = "neg pos abs invert int float index round getitem setitem delitem enter exit reversed"

for _name in (*TELLING.split(), *OTHERS.split()):
    setattr(Proxy, f"__{_name}__", _forwarded(f"__{_name}__", _name in TELLING.split()))
