"""Judges answers by tests, so that the answer can neither reach the tests nor the channel of the verdict.

The tests run in one sandbox and the answer's program in another; they share no namespace and are joined by a socket,
over which the tests call the answer (`rewards.judge.peer`). Only our own code in the tests' sandbox can write the
report. What the answer causes is its failure; tests that cannot be passed are an infrastructure failure that names
the task. Where only a trial can tell, the reference is tried, or an answer that does nothing.

Not covered:
- A row with `in_process`, in which the answer may do to its tests what it likes.
- What the tests leave to the answer: how instances of its class compare with each other and with plain values, what its
  methods say, and arguments that the answer changes before the tests read them again.
- Objects that do not travel: named tuples and classes with __slots__ of the prompt (the former arrive as tuples, the
  latter are handles), coroutines, values nested deeper than 150, and changes to a deque.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from rewards.errors import InfrastructureError
from rewards.judge.answer_side import code_of
from rewards.judge.rows import Judged
from rewards.judge.runtime import entry, sources
from rewards.judge.tests_side import BROKEN, FAILED, PASSED
from rewards.sandbox.sandbox import Outcome, Program, Sandbox, queued_s

VERDICTS = 4096
REPORT_BYTES = 4096
OVERRAN = "overran"
DOES_NOTHING = """
class {name}:
    def __new__(cls, *arguments, **keywords):
        return None
"""
LIMITS = (Outcome.TIMEOUT, Outcome.MEMORY, Outcome.OUTPUT_LIMIT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kind` is passed, failed, broken (the tests are), or overran (the tests used up their own time or memory). One
    that a limit decided does not last: a stalled machine may have been the cause."""

    kind: str
    why: str = ""
    lasts: bool = True


class Judge:
    """Judges answers. The same answer to the same tests is executed once, as members of a group often agree.

    The tests must be deterministic. The newest VERDICTS verdicts are kept, unless they do not last.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._verdicts: OrderedDict[tuple[Judged, str], asyncio.Task[tuple[Verdict, float]]] = OrderedDict()

    async def __call__(self, row: Judged, answer: str | None, task: str = "") -> float:
        """1.0 if the answer passes the tests, else 0.0; no answer scores 0.

        If one caller is cancelled, the others still get their verdict.

        Raises:
            InfrastructureError: the sandbox failed, or the tests of this task are broken.
        """
        if answer is None:
            return 0.0
        verdict = await self._shared(row, answer)
        if verdict.kind == PASSED:
            return 1.0
        if row.reference is not None:
            reference = await self._shared(row, row.reference)
            if reference.kind != PASSED:
                raise _broken(task, row, f"the reference answer does not pass them: {reference.why}")
        elif verdict.kind == BROKEN or (verdict.kind == OVERRAN and await self._overruns(row)):
            raise _broken(task, row, verdict.why)
        return 0.0

    async def _overruns(self, row: Judged) -> bool:
        """Whether the tests come to no end with an answer that does nothing, either: then it was not the answer's
        doing."""
        return (await self._shared(row, DOES_NOTHING.format(name=row.entry_point))).kind in (OVERRAN, BROKEN)

    async def _shared(self, row: Judged, answer: str) -> Verdict:
        key = (row, answer)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = asyncio.create_task(_timed(self._sandbox, row, answer))
            verdict.add_done_callback(partial(self._forget_unless_lasting, key))
            while len(self._verdicts) > VERDICTS:
                self._verdicts.popitem(last=False)
        found, waited_s = await asyncio.shield(verdict)
        queued_s.set(queued_s.get() + waited_s)
        return found

    def _forget_unless_lasting(self, key: tuple[Judged, str], verdict: asyncio.Task[tuple[Verdict, float]]) -> None:
        failed = verdict.cancelled() or verdict.exception() is not None
        if failed or not verdict.result()[0].lasts:
            self._verdicts.pop(key, None)


async def _timed(sandbox: Sandbox, row: Judged, answer: str) -> tuple[Verdict, float]:
    """A verdict, and the seconds that it waited for a free slot: this is a task of its own, with its own count."""
    queued_s.set(0.0)
    return await judge(sandbox, row, answer), queued_s.get()


async def judge(sandbox: Sandbox, row: Judged, answer: str) -> Verdict:
    """Execute the tests on an answer. Raises InfrastructureError: a sandbox failed."""
    if row.cases:
        return await _judge_cases(sandbox, row, answer)
    if row.entry_point is None or row.in_process:
        return await _judge_here(sandbox, row, answer)
    return await _judge_apart(sandbox, row, answer)


async def _judge_apart(sandbox: Sandbox, row: Judged, answer: str) -> Verdict:
    with _channel() as (report, write), _pair() as (tests_end, answer_end):
        channel = {"socket": tests_end.fileno(), "budget_s": sandbox.config.wall_s}
        tests = _program("tests_side", _argument(row, answer, write.fileno()) | channel, write, tests_end)
        known = {"prompt": row.prompt, "answer": answer, "socket": answer_end.fileno()}  # and nothing of the tests
        program = _program("answer_side", known, answer_end)
        tested, asked = await sandbox.run_together([tests, program], wall_s=2 * sandbox.config.wall_s)
        for execution in (tested, asked):
            execution.raise_for_infrastructure()
        found = _reported(report)
    limited = asked.outcome in LIMITS
    if found is None:
        return Verdict(OVERRAN, f"the tests did not come to an end: {tested.outcome}", lasts=False)
    return Verdict(found.kind, found.why, lasts=not limited and "used up its time" not in found.why)


async def _judge_here(sandbox: Sandbox, row: Judged, answer: str) -> Verdict:
    """The tests see the answer's text, or, if the row accepts that, run it in their own process."""
    with _channel() as (report, write):
        argument = _argument(row, answer, write.fileno()) | {"socket": None, "budget_s": None}
        tests = _program("tests_side", argument, write, stdin=answer)
        (tested,) = await sandbox.run_together([tests], wall_s=sandbox.config.wall_s)
        tested.raise_for_infrastructure()
        found = _reported(report)
    if found is None:
        return Verdict(FAILED, f"the tests did not come to an end: {tested.outcome}", tested.outcome not in LIMITS)
    return found


async def _judge_cases(sandbox: Sandbox, row: Judged, answer: str) -> Verdict:
    """Each case is an execution of its own, and what it printed is compared here."""
    code = code_of(answer, "")
    for number, case in enumerate(row.cases):
        execution = (await sandbox.run(code, stdin=case.input)).raise_for_infrastructure()
        if execution.outcome is not Outcome.OK or _lines(execution.stdout) != _lines(case.output):
            return Verdict(FAILED, f"case {number}: {execution.outcome}", execution.outcome not in LIMITS)
    return Verdict(PASSED)


def _lines(text: str) -> list[str]:
    """Lines without the white space at their ends, and without the empty ones at the end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip().split("\n")


def _argument(row: Judged, answer: str, report: int) -> dict[str, Any]:
    return {
        "tests": row.program,
        "entry_point": row.entry_point,
        "prompt": row.prompt,
        "answer": answer,
        "report": report,
        "names": list(row.reading.names),
        "waits": list(row.reading.waits),
    }


def _program(side: str, argument: dict[str, Any], *files: Any, stdin: str = "") -> Program:
    name, modules = sources(side)
    return Program(runtime=entry(), argument=(modules, name, argument), stdin=stdin, files=files)


def _reported(report: int) -> Verdict | None:
    """What the tests reported; None if they ended without a report."""
    try:
        text = os.read(report, REPORT_BYTES).decode(errors="replace")
    except BlockingIOError:
        text = ""
    kind, line, why = text.partition("\n")
    return Verdict(kind, why) if line and kind in (PASSED, FAILED, BROKEN) else None


def _broken(task: str, row: Judged, why: str) -> InfrastructureError:
    return InfrastructureError(f"the tests of task {task or '?'} are broken: {why}: {row.program[:200]!r}")


@contextlib.contextmanager
def _channel() -> Iterator[tuple[int, Any]]:
    """A pipe for the report: the end that is read, and the other as a file."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read, False)
    with open(write, "wb", buffering=0) as file:
        try:
            yield read, file
        finally:
            os.close(read)


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second
