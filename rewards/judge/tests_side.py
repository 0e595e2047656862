"""What runs the tests: our own code in a sandbox of its own, where no code of the model runs.

It reports one line: whether the answer passed, failed, or the tests themselves are broken, and why. With an entry point
the tests call the answer, which runs elsewhere (`rewards.judge.peer`); without one they see its text as `answer`.
"""

from __future__ import annotations

import posix
import sys

from rewards.judge.answer_side import compiles, loaded, records
from rewards.judge.peer import AnswerLost, Peer
from rewards.judge.proxy import Proxy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

PASSED, FAILED, BROKEN = "passed", "failed", "broken"
TESTS = "<tests>"
NEVER_ASKED = "the tests never call the answer"


def main(argument: dict[str, Any], module: ModuleType) -> None:
    """Run the tests and write the report. Nothing that they print can reach it."""
    report, output = argument["report"], posix.open("/dev/null", posix.O_WRONLY)
    posix.dup2(output, 1)
    posix.dup2(output, 2)
    peer = None if argument["socket"] is None else Peer(argument["socket"], budget_s=argument["budget_s"])
    verdict, why = _verdict(argument, module, peer)
    if peer is not None and peer.lost and verdict != BROKEN:
        verdict, why = FAILED, f"the answer cannot be asked: {peer.lost}"
    posix.write(report, f"{verdict}\n{why[:1500]}".encode(errors="backslashreplace"))


def _verdict(argument: dict[str, Any], module: ModuleType, peer: Peer | None) -> tuple[str, str]:
    namespace = module.__dict__
    try:
        namespace["answer"] = argument["answer"]
        if peer is not None:
            _bind(argument, namespace, peer)
        elif argument["entry_point"] is not None:
            _load_here(argument, namespace)
    except AnswerLost as error:
        return FAILED, f"the answer does not load: {error}"
    except BaseException as error:
        own = peer is None or peer.raised == [error]
        return (FAILED if own else BROKEN), f"{'the answer' if own else 'the prompt'} does not load: {_said(error)}"
    try:
        exec(compile(argument["tests"], TESTS, "exec", dont_inherit=True), namespace)
        if argument["entry_point"] is not None:
            _run_what_waits(namespace, argument["waits"])
    except AnswerLost as error:
        return FAILED, str(error)
    except SystemExit as error:
        return _exited(error, namespace, peer)
    except BaseException as error:
        return (BROKEN if _own_fault(error, argument, namespace, peer) else FAILED), _said(error)
    return (PASSED, "") if peer is None or _was_asked(namespace, peer) else (BROKEN, NEVER_ASKED)


def _bind(argument: dict[str, Any], namespace: dict[str, Any], peer: Peer) -> None:
    """Run the trusted prompt, whose helpers the tests may use, and put the answer's object in the place of its own."""
    peer.await_greeting()
    if compiles(argument["prompt"]):
        exec(compile(argument["prompt"], "<prompt>", "exec", dont_inherit=True), namespace)
    peer.records.update(records(namespace, argument["prompt"], argument["entry_point"]))
    peer.operators = names_a_class(argument["entry_point"], argument["prompt"])
    load = peer.foreign(0, "function")
    namespace[argument["entry_point"]] = namespace["candidate"] = load(argument["entry_point"])


def names_a_class(entry_point: str, prompt: str) -> bool:
    """Whether the row, not the answer, says that the answer defines a class."""
    return f"class {entry_point}" in prompt or entry_point[:1].isupper()


def _load_here(argument: dict[str, Any], namespace: dict[str, Any]) -> None:
    """Load the answer into the process of the tests, where it may do to them what it likes (`in_process`)."""
    names = loaded(argument["prompt"], argument["answer"], argument["entry_point"])
    if argument["entry_point"] not in names:
        raise NameError(f"the answer defines no {argument['entry_point']}")
    namespace.update((name, value) for name, value in names.items() if not name.startswith("__"))
    namespace["candidate"] = names[argument["entry_point"]]


def _run_what_waits(namespace: dict[str, Any], waits: list[str]) -> None:
    """Run tests that are only defined: a function `check`, or unittest's cases."""
    if "check" in waits:
        namespace["check"](namespace["candidate"])
    unittest = sys.modules.get("unittest")
    cases = [value for value in namespace.values() if isinstance(value, type) and _is_case(value, unittest)]
    if "cases" in waits and unittest is not None and cases:
        loader = unittest.defaultTestLoader
        suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in cases)
        if not unittest.TextTestRunner(verbosity=0).run(suite).wasSuccessful():
            raise AssertionError("a test case failed")


def _is_case(value: type, unittest: Any) -> bool:
    return unittest is not None and issubclass(value, unittest.TestCase) and value.__module__ == "__main__"


def _was_asked(namespace: dict[str, Any], peer: Peer | None) -> bool:
    """Whether the tests have asked the answer anything after it was loaded, or hold a plain value instead of it."""
    return peer is not None and (peer.requests > 1 or type(namespace["candidate"]) is not Proxy)


def _exited(error: SystemExit, namespace: dict[str, Any], peer: Peer | None) -> tuple[str, str]:
    """A program that ends by sys.exit(0) has passed; an answer that does so has not."""
    if peer is not None and error in peer.raised:
        return FAILED, "the answer ended its process"
    if peer is not None and not _was_asked(namespace, peer):
        return BROKEN, NEVER_ASKED
    if _frame_of(error) not in (TESTS, "library"):
        return FAILED, "the answer ended the program"
    return (PASSED, "") if not error.code else (FAILED, f"the tests ended with {error.code!r}")


def _own_fault(error: BaseException, argument: dict[str, Any], namespace: dict[str, Any], peer: Peer | None) -> bool:
    """Whether the tests raised this by themselves, as far as one can tell: they never asked the answer, gave it what
    does not travel, or name what nobody defines, a package or a file that is not there."""
    if peer is not None and (error in peer.raised or peer.lost):
        return False
    if peer is not None and not _was_asked(namespace, peer):
        return True
    if peer is not None and peer.untravelled and "cannot be given this" in str(error):
        return True
    if _frame_of(error) != TESTS:
        return False
    text = argument["tests"]
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        return bool(error.name) and error.name not in argument["names"]
    if isinstance(error, ImportError):
        return bool(error.name) and str(error.name).partition(".")[0] in text
    return isinstance(error, FileNotFoundError) and bool(error.filename) and str(error.filename) in text


def _frame_of(error: BaseException) -> str:
    """Whose line raised an error: that of the tests, of a library, or of text that they ran (the answer's, mostly)."""
    where, step = TESTS, error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if name == TESTS or name == "<prompt>":
            where = TESTS
        elif name.startswith("<frozen importlib"):
            pass
        elif not name.startswith("<") or name.startswith("<frozen"):
            where = "library"
        elif name not in ("<runner>", "<judge>"):
            where = name
        step = step.tb_next
    return where


def _said(error: BaseException) -> str:
    message = str(error).strip()
    line = f"{type(error).__name__}: {message}" if message else type(error).__name__
    step = error.__traceback__
    numbers = []
    while step is not None:
        if step.tb_frame.f_code.co_filename == TESTS:
            numbers.append(step.tb_lineno)
        step = step.tb_next
    return f"{line} (line {numbers[-1]} of the tests)" if numbers else line
