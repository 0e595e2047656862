"""What runs the answer: it loads the program and serves the calls of the tests. The program shares this process, so
nothing that comes from here is believed to be more than a value."""

from __future__ import annotations

import posix
import sys

from rewards.judge.peer import AnswerLost, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

FENCES = ("```", "~~~")


def main(argument: dict[str, Any], module: ModuleType) -> None:
    """Serve until the tests have ended."""
    output = posix.open("/dev/null", posix.O_RDWR)
    for fd in (0, 1, 2):
        posix.dup2(output, fd)
    posix.close(output)
    peer = Peer(argument["socket"], trusts=True)

    def load(entry_point: str) -> Any:
        namespace = loaded(argument["prompt"], argument["answer"], entry_point)
        peer.records.update(records(namespace, argument["prompt"], entry_point))
        if entry_point not in namespace:
            raise NameError(f"the answer defines no {entry_point}")
        if isinstance(namespace[entry_point], type):
            peer.by_handle = (namespace[entry_point],)
        return namespace[entry_point]

    peer.export(load)
    peer.greet()
    try:
        peer.serve()
    except AnswerLost:
        posix._exit(0)


def loaded(prompt: str, answer: str, entry_point: str) -> dict[str, Any]:
    """The names that an answer defines: a whole program, or what continues the prompt. It may stand in a code block."""
    solution = type(sys)("solution")
    sys.modules["solution"] = solution
    code = answer if compiles(answer) else code_of(answer, entry_point)
    whole = not code.lstrip("\n")[:1].isspace() and compiles(code)
    for source in [*([prompt] if compiles(prompt) else []), code] if whole else [prompt + code]:
        exec(compile(source, "<answer>", "exec", dont_inherit=True), solution.__dict__)
    return solution.__dict__


def records(namespace: dict[str, Any], prompt: str, entry_point: str) -> dict[str, type]:
    """The classes that the prompt defines, which both sides have: their instances travel as their attributes."""
    return {
        name: value
        for name, value in list(namespace.items())
        if isinstance(value, type) and name != entry_point and f"class {name}" in prompt
    }


def code_of(answer: str, entry_point: str) -> str:
    """The code in an answer: its last code block that defines the entry point, or all its code blocks; without an entry
    point its longest one; without blocks all of it."""
    blocks = blocks_of(answer)
    if not entry_point:
        return max(blocks, key=len, default=answer)
    defining = [block for block in blocks if any(defines(line, entry_point) for line in block.splitlines())]
    return defining[-1] if defining else "\n".join(blocks) or answer


def defines(line: str, name: str) -> bool:
    """Whether a line of code begins to define a function, a class or a variable of this name."""
    for word in ("def ", "async def ", "class ", ""):
        rest = line.lstrip() if word else line
        if rest.startswith(word + name):
            after = rest[len(word + name) :].lstrip()
            return after[:1] in ("(", ":", "[") if word else after[:1] in ("=", ":") and after[:2] != "=="
    return False


def blocks_of(text: str) -> list[str]:
    """The contents of Markdown's fenced code blocks. One that is not closed goes on to the end."""
    blocks: list[list[str]] = []
    fence = None
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if fence is None and bare.startswith(FENCES):
            fence = bare[: len(bare) - len(bare.lstrip(bare[0]))]
            blocks.append([])
        elif fence is not None and bare.startswith(fence) and not bare.strip(fence[0]):
            fence = None
        elif fence is not None:
            blocks[-1].append(line)
    return ["".join(block) for block in blocks]


def compiles(source: str) -> bool:
    try:
        compile(source, "<answer>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True
