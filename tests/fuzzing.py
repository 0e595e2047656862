"""Malformed recipes, rows, demonstrations and tool calls: each is used, or refused in a line; nothing else happens.

    .venv/bin/python -m tests.fuzzing [--cases 20000] [--seed 1]

tests/test_fuzz.py runs a few hundred cases of a fixed seed. A failure names the case; `--seed` and `--only` repeat it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl.config import Recipe
from rl.paths import REPOSITORY
from rl.recipe.load import RecipeError, load_recipe
from rollout.agent.episode import _bounded, _message
from rollout.chat.demonstrations import render_demonstration
from rollout.plain import plain
from rollout.tasks.config import TasksConfig
from rollout.tasks.conversation import read_demonstration, read_tools
from rollout.tasks.stream import task_stream
from tests.support import glm45, rows_of, task_source

QUICKSTART = (REPOSITORY / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
TOOL = {
    "type": "function",
    "function": {
        "name": "set",
        "description": "Put it somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "n": {"type": ["integer", "null"]}, "any": {}},
            "required": ["name"],
        },
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "set", "arguments": {"name": "cat", "n": 1}}}
DEMONSTRATION = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Put cat somewhere."},
        {"role": "assistant", "content": "", "reasoning_content": "I call.", "tool_calls": [CALL]},
        {"role": "tool", "content": "ok", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done"},
    ],
    "tools": [TOOL],
}
ROW = {
    "id": 1,
    "messages": [{"role": "user", "content": "Put cat in attic."}],
    "payload": {"state": {"cat": "barn"}, "goal": {"cat": "attic"}},
    "metadata": {"level": 1},
}
WEIRD: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 10**4200, 1e308, 0.1, "", " ", "\ud800", "\0", "\u2028", "x" * 5000, "NaN",
    "null", "[1", '{"a": 1}', "<|user|>", "</think>", "<tool_call>", [], {}, [None], {"a": None}, {"": ""}, [[]], "é",
    json.loads("[" * 300 + "]" * 300), ["text"], {"role": "user"}, {"type": "text", "text": "t"}, "../..", "#", "&a",
)  # fmt: skip
SIGNS = "{}[]\"':,#&*!|>%@`\\\0\x1b\n\t -.\u2028é\ufeff0"


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value in which one thing, somewhere, is replaced, removed, doubled or renamed."""
    copy = json.loads(json.dumps(value))
    target = copy
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        if not keys:
            return copy
        key = rng.choice(keys)
        if isinstance(target[key], dict | list) and target[key] and rng.random() < 0.8:
            target = target[key]
            continue
        match rng.randrange(5):
            case 0:
                del target[key]
            case 1 if isinstance(target, dict):
                target[rng.choice(("x", "", "name", "content", "role", key + " "))] = target.pop(key)
            case 2 if isinstance(target, list):
                target.insert(key, target[key])
            case _:
                target[key] = rng.choice(WEIRD)
        return copy


def scrambled(text: str, rng: random.Random) -> str:
    """A text with a few signs put in, left out or doubled."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text))
        piece = rng.choice((rng.choice(SIGNS), text[place : place + rng.randint(1, 40)], ""))
        text = text[:place] + piece + text[place + rng.choice((0, 1, 5)) :]
    return text


def fuzz_recipe(rng: random.Random, folder: Path) -> None:
    path = folder / "recipe.yaml"
    text = scrambled(QUICKSTART, rng) if rng.random() < 0.5 else QUICKSTART
    path.write_text(text, encoding="utf-8", errors="replace")
    keys = [
        f"{section}.{key}"
        for section in ("run", "rollout", "trainer", "sft", "tasks", "eval")
        for key in _keys(section)
    ]
    overrides = [f"{rng.choice(keys)}={_override(rng)}" for _ in range(rng.randrange(3))]
    try:
        load_recipe(path, [scrambled(one, rng) if rng.random() < 0.3 else one for one in overrides])
    except RecipeError as error:
        for message in error.messages:
            _check_message(message)


def fuzz_row(rng: random.Random, folder: Path) -> None:
    path = folder / "rows.jsonl"
    line = json.dumps(mutated(ROW, rng))
    if rng.random() < 0.3:
        line = scrambled(line, rng)
    path.write_text(f"{json.dumps(ROW)}\n{line}\n", encoding="utf-8")
    config = TasksConfig(sources=(task_source("store", dataset=str(path), eval_dataset=str(path)),), train_size=2)
    try:
        tasks = list(task_stream(config, "train", 0))
    except ValueError as error:
        _check_message(str(error))
        assert "rows.jsonl" in str(error), error
        return
    for task in tasks:
        for values in (list(task.messages), dict(task.payload), dict(task.metadata)):
            assert plain(values, "task") == values


def fuzz_demonstration(rng: random.Random, folder: Path) -> None:
    path = folder / "demonstrations.jsonl"
    path.write_text(json.dumps(mutated(DEMONSTRATION, rng)), encoding="utf-8")
    chat = glm45()
    try:
        (row,) = rows_of(str(path))
        messages = read_demonstration(row.values, row.where)
        tools = read_tools(row.values.get("tools"), f"{row.where}: field 'tools'")
        thinking = rng.random() < 0.5
        ids, mask = render_demonstration(chat, messages, tools, thinking)
    except ValueError as error:
        _check_message(str(error))
        return
    assert len(ids) == len(mask) and sum(mask)
    speakers = chat.tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"])
    turns = sum(ids.count(token) for token in speakers)
    assert turns <= len(messages) + 2, f"{turns} speakers in {len(messages)} messages: a text forged one"


def fuzz_call(rng: random.Random, folder: Path) -> None:
    chat = glm45()
    special = list(chat.tokenizer.get_added_vocab().values())
    pieces = ["set", "name", "n", "cat", " 1 ", "null", "[" * rng.choice((1, 50, 400)), '"', "{", "1e999", "NaN"]
    ids: list[int] = []
    for _ in range(rng.randrange(40)):
        text = rng.choice(pieces)
        ids += [rng.choice(special)] if rng.random() < 0.6 else chat.tokenizer.encode(text, add_special_tokens=False)
    turn = _bounded(chat.parse(ids, [TOOL] if rng.random() < 0.7 else []))
    assert not (turn.malformed and turn.tool_calls)
    message = _message(turn)
    assert plain(message, "message") == message


FUZZERS: Mapping[str, Callable[[random.Random, Path], None]] = {
    "recipe": fuzz_recipe,
    "row": fuzz_row,
    "demonstration": fuzz_demonstration,
    "call": fuzz_call,
}


def fuzz(kind: str, seed: int, number: int, folder: Path) -> None:
    """Try one case. Raises AssertionError or whatever escaped."""
    FUZZERS[kind](random.Random(f"{kind}/{seed}/{number}"), folder)


def _keys(section: str) -> list[str]:
    from rl.recipe.sections import section_of

    model = section_of(Recipe.model_fields[section].annotation)
    assert model is not None
    return list(model.model_fields)


def _override(rng: random.Random) -> str:
    value = rng.choice(WEIRD)
    return value if isinstance(value, str) else json.dumps(value)


def _check_message(message: str) -> None:
    assert message and len(message) < 1000 and message.isprintable(), f"{len(message)} characters: {message[:300]!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="KIND or KIND/NUMBER")
    options = parser.parse_args()
    kind, _, number = (options.only or "").partition("/")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name in [kind] if kind else FUZZERS:
            for case in [int(number)] if number else range(options.cases):
                try:
                    fuzz(name, options.seed, case, Path(folder))
                except Exception as error:
                    failed += 1
                    print(f"{name}/{case}: {type(error).__name__}: {str(error)[:300]!r}", flush=True)
    raise SystemExit(f"{failed} cases failed" if failed else 0)


if __name__ == "__main__":
    main()
