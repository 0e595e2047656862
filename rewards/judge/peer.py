"""Calls between the process that runs tests and the one that runs an answer, over a socket.

Both sides are a `Peer`. A request names an operation on an object that the other side has exported, and its answer is a
value or an exception, by type and message. While a side waits for an answer it serves the requests of the other, so
that a function which a test hands over can be called back. What the answer changes in the arguments is sent back with
the answer, as the contents of the containers by number.

The side that runs the tests exports functions and iterators only, and nothing can be done to them but to call them and
to ask them for the next item. Everything else that is not plain stays where it is, and the other side holds a handle.
"""

from __future__ import annotations

import _thread
import builtins
import posix
import select
import time

from rewards.judge.decode import Decoder
from rewards.judge.encode import Encoder
from rewards.judge.proxy import CALL, DELETE, GET, NEXT, SET, Proxy, number_of
from rewards.judge.wire import MAX_BYTES, Shared, Side, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_REQUESTS = 200_000
MAX_TOTAL = 32 << 20
MAX_EXPORTS = 100_000
HELLO = b"H"


class AnswerLost(BaseException):
    """The answer can no longer be asked: it ended, used up its time, or sent what is no message.

    A BaseException, so that a test which expects any error of the answer does not take it for one.
    """


class Peer(Side):
    """One side of the conversation.

    Args:
        budget_s: the seconds that may be spent on waiting for the other side; None: any number.
        trusts: whether the other side may do anything to exported objects.

    Attributes:
        requests: how often the other side was asked.
        lost: why it can no longer be asked, if so.
        raised: the exceptions that it raised here.
        operators: whether its objects take part in operators with plain values, as instances of a class do.
        untravelled: whether something could not be given to the other side.
    """

    def __init__(self, fd: int, *, budget_s: float | None = None, trusts: bool = False) -> None:
        self.records: dict[str, type] = {}
        self.requests = 0
        self.lost: str | None = None
        self.operators = False
        self.untravelled = False
        self._served = 0
        self._reading = False
        self.raised: list[BaseException] = []
        self._fd = fd
        self._budget_s = budget_s
        self._trusts = trusts
        self._exports: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._proxies: dict[int, Proxy] = {}
        self._total = 0
        self._lock = _thread.RLock()
        if budget_s is not None:
            posix.set_blocking(fd, False)

    def request(self, operation: str, number: int, name: str, *values: Any) -> Any:
        """Ask the other side, and return what it answers or raise what it raises."""
        with self._lock:
            return self._request(operation, number, name, values)

    def _request(self, operation: str, number: int, name: str, values: tuple[Any, ...]) -> Any:
        if self.lost:
            raise AnswerLost(self.lost)
        if self._reading:
            raise self._lose("what it sent asks for more")
        self.requests += 1
        self._check_requests()
        shared = Shared()
        encoder = Encoder(self, shared)
        try:
            encoder.write((operation, number, name, values))
        except WireError as error:
            self.untravelled = True
            raise TypeError(f"the answer cannot be given this: {error}") from None
        self._send(b"Q", encoder.message())
        while True:
            kind, data = self._receive()
            started = time.monotonic()
            if kind == b"Q":
                self._served += 1
                self._check_requests()
                self._serve(data)
                self._spend(time.monotonic() - started)
                continue
            outcome, value = self._read_answer(data, shared)
            self._spend(time.monotonic() - started)
            if outcome == "value":
                return value
            raise self._exception(value)

    def greet(self) -> None:
        """Tell the other side that this one has started."""
        posix.write(self._fd, HELLO)

    def await_greeting(self) -> None:
        """Wait until the other side has started, however long that takes. Raises AnswerLost: it has ended."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()
        if self._exactly(1) != HELLO:
            raise self._lose("what it sent is no message")

    def _check_requests(self) -> None:
        if self.requests + self._served > MAX_REQUESTS:
            raise self._lose(f"it was asked, or asked itself, more than {MAX_REQUESTS} times")

    def serve(self) -> None:
        """Serve the other side until it ends."""
        while True:
            kind, data = self._receive()
            if kind == b"Q":
                self._serve(data)

    def export(self, value: Any) -> tuple[int, str]:
        if not self._trusts and not callable(value) and not hasattr(type(value), "__next__"):
            raise WireError(f"an object of type {type(value).__name__} is no plain value")
        number = self._numbers.get(id(value))
        if number is None:
            if len(self._exports) >= MAX_EXPORTS:
                raise WireError(f"more than {MAX_EXPORTS} objects were handed over")
            number = self._numbers[id(value)] = len(self._exports)
            self._exports.append(value)
        return number, type(value).__name__

    def own(self, number: int) -> Any:
        if type(number) is not int or not 0 <= number < len(self._exports):
            raise WireError("there is no such object")
        return self._exports[number]

    def foreign(self, number: int, kind: str) -> Any:
        if number not in self._proxies:
            self._proxies[number] = Proxy(self, number, kind[:80])
        return self._proxies[number]

    def foreign_number(self, value: Any) -> int | None:
        return number_of(value) if type(value) is Proxy else None

    def _serve(self, data: bytes) -> None:
        shared = Shared()
        try:
            decoder = Decoder(self, shared, data)
            operation, number, name, values = decoder.read()
            first = list(shared.objects)
            target = self.own(number)
            if not self._trusts and (operation, name) == (CALL, "__iter__") and hasattr(type(target), "__next__"):
                answer = ("value", target)
            elif not self._trusts and (operation not in (CALL, NEXT) or name != ""):
                raise WireError("nothing can be done to this but to call it, or to ask for the next item")
            else:
                answer = ("value", _do(operation, target, name, values))
        except AnswerLost:
            raise
        except BaseException as error:
            answer = ("error", described(error))
            first = list(shared.objects) if not isinstance(error, WireError) else []
        self._send(b"A", self._answered(answer, first, shared))

    def _answered(self, answer: tuple[str, Any], first: list[Any], shared: Shared) -> bytes:
        """The answer, then the contents of the containers that came with the request."""
        encoder = Encoder(self, shared)
        try:
            encoder.write((*answer, len(first)))
            for value in first:
                encoder.contents(value)
            return encoder.message()
        except Exception as error:
            encoder = Encoder(self, Shared())
            encoder.write(("error", described(error), 0))
            return encoder.message()

    def _read_answer(self, data: bytes, shared: Shared) -> tuple[str, Any]:
        sent = len(shared.objects)
        decoder = Decoder(self, shared, data)
        self._reading = True
        try:
            answer = decoder.read()
            if type(answer) is not tuple or [type(part) for part in answer[::2]] != [str, int]:
                raise WireError("an answer is none")
            outcome, value, count = answer
            if outcome not in ("value", "error") or count not in (0, sent):
                raise WireError("an answer is none")
            for number in range(count):
                decoder.fill(shared.objects[number])
        except (WireError, TypeError, ValueError) as error:
            raise self._lose(f"what it sent cannot be read: {error}") from None
        finally:
            self._reading = False
        return outcome, value

    def _exception(self, value: Any) -> BaseException:
        error = rebuilt(value, self.records)
        self.raised.append(error)
        return error

    def _send(self, kind: bytes, data: bytes) -> None:
        view = memoryview(kind + len(data).to_bytes(4, "big") + data)
        try:
            while view:
                self._wait(select.POLLOUT)
                view = view[self._write(view) :]
        except OSError as error:
            raise self._lose(f"it has ended ({error.strerror})") from None

    def _write(self, view: memoryview) -> int:
        try:
            return posix.write(self._fd, view)
        except BlockingIOError:
            return 0

    def _receive(self) -> tuple[bytes, bytes]:
        head = self._exactly(5)
        size = int.from_bytes(head[1:], "big")
        self._total += size + len(head)
        if size > 2 * MAX_BYTES or self._total > MAX_TOTAL:
            raise self._lose("it sent too much")
        if head[:1] not in (b"Q", b"A"):
            raise self._lose("what it sent is no message")
        return head[:1], self._exactly(size)

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            self._wait(select.POLLIN)
            try:
                part = posix.read(self._fd, min(count, 1 << 20))
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lose(f"it has ended ({error.strerror})") from None
            if not part:
                raise self._lose("it has ended")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, events: int) -> None:
        if self._budget_s is None:
            return
        started = time.monotonic()
        poll = select.poll()
        poll.register(self._fd, events)
        poll.poll(max(self._budget_s, 0) * 1000)
        self._spend(time.monotonic() - started)

    def _spend(self, seconds: float) -> None:
        if self._budget_s is not None:
            self._budget_s -= seconds
            if self._budget_s <= 0:
                raise self._lose("it used up its time")

    def _lose(self, why: str) -> AnswerLost:
        self.lost = self.lost or why
        return AnswerLost(self.lost)


def _do(operation: str, target: Any, name: str, values: tuple[Any, ...]) -> Any:
    if operation == CALL:
        arguments, keywords = values
        if type(arguments) is not tuple or type(keywords) is not dict:
            raise WireError("a call has arguments")
        if not name:
            return target(*arguments, **keywords)
        return getattr(type(target), name)(target, *arguments, **keywords)
    if operation == NEXT:
        return next(target)
    if operation == GET:
        return getattr(type(target) if name in ("__bool__", "__len__") else target, name)
    if operation == SET:
        return setattr(target, name, values[0])
    if operation == DELETE:
        return delattr(target, name)
    raise WireError("there is no such operation")


def described(error: BaseException) -> tuple[str, list[str], str]:
    """An exception by the name of its type, the built-in types that it derives from, and its message."""
    kind = type(error)
    bases = [base.__name__ for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base]
    try:
        only = error.args[0] if len(error.args) == 1 and type(error.args[0]) is str else str(error)
        message = only[:2000]
    except BaseException:
        message = ""
    return kind.__name__, bases, message


def rebuilt(value: Any, records: dict[str, type]) -> BaseException:
    """An exception of the named class, if it is built in or the prompt's, or of a new one derived from the nearest."""
    try:
        name, bases, message = value
        name, message = str(name)[:80], str(message)
        found = (getattr(builtins, str(base), None) for base in bases)
        base = next(one for one in found if isinstance(one, type) and issubclass(one, BaseException))
        known = records.get(name, base)
        kind: type[BaseException] = (
            known if known.__name__ == name and issubclass(known, BaseException) else type(name, (base,), {})
        )
        try:
            return kind(message)
        except TypeError:  # it wants more than a message
            return kind.__new__(kind, message)
    except (TypeError, ValueError, StopIteration):
        return RuntimeError(f"an exception that cannot be made again: {str(value)[:200]}")
