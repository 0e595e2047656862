"""`play`: a person is the policy. It plays the recipe's held-out tasks and is scored as a model would be.

    ./launch.sh play RECIPE [key=value …]

What the model would see is shown as it is, with its special tokens. A line is the answer; a line that begins with the
name of a tool calls it, with arguments as JSON or as key=value: `get {"name": "fox"}`, `get name=fox`. A backslash at
the end of a line goes on in the next. Ctrl-D ends the game. Needs the model's tokenizer, and no weights.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rl.exitcodes import NOTHING_STARTED
from rl.verbs.absent import is_file, no_such
from rl.verbs.usage import read_recipe, refuse

if TYPE_CHECKING:
    from rewards.contracts import Ending
    from rl.config import Recipe
    from rollout.agent.source import Score, Source
    from rollout.contracts import Chat, Environment
    from rollout.types import Completion, Message, SamplingParams, Task, TokenIds

LONG_S = 1e8
"""A person may take this long."""


class Left(BaseException):
    """The person has left the game: no failure, which an agent loop would keep as text."""


def play(argv: Sequence[str], ask: Callable[[str], str] = input) -> int:
    """Play until all tasks are done, or the person leaves. `argv` is the recipe's path and overrides."""
    if not argv:
        return refuse("play needs a recipe: ./launch.sh play RECIPE [key=value …]")
    if not is_file(argv[0]):
        return refuse(no_such(argv[0]))
    recipe = read_recipe(argv)
    if recipe is None:
        return NOTHING_STARTED
    try:
        asyncio.run(_play(recipe, ask))
    except (Left, KeyboardInterrupt):
        print()
    except ValueError as error:
        return refuse(str(error))
    return 0


async def _play(recipe: Recipe, ask: Callable[[str], str]) -> None:
    from rewards.sandbox.sandbox import Sandbox
    from rl.observe.transcript import ending
    from rollout.agent.episode import Agent
    from rollout.agent.loop import run_agent
    from rollout.agent.source import make_sources
    from rollout.chat.registry import load_chat
    from rollout.tasks.stream import EVAL_SEED, task_stream

    assert recipe.model.renderer is not None
    chat = load_chat(recipe.model.renderer, recipe.model.path)
    sandbox = Sandbox(recipe.sandbox)
    sources = make_sources(recipe.tasks.sources, sandbox)
    config = recipe.rollout.model_copy(update={"trajectory_timeout_s": LONG_S, "infra_retries": 0})
    for number, task in enumerate(task_stream(recipe.tasks, "eval", EVAL_SEED).once()):
        person = Person(chat, ask, config.thinking)
        agent = Agent(chat=chat, engine=person, config=config, seed=recipe.run.seed)
        seated: Any = Seated(sources[task.source], person)
        trajectory = await run_agent(agent, seated, task, f"play-{number}", f"play-{number}/0")
        print(f"\n{ending(trajectory)}\n")


class Seated:
    """A source that tells the person which tools there are."""

    def __init__(self, source: Source, person: Person) -> None:
        self._source, self._person = source, person

    def make(self, task: Task) -> Environment:
        environment = self._source.make(task)
        self._person.tools = [tool["function"]["name"] for tool in environment.tools]
        return environment

    async def score(self, environment: Environment, ending: Ending) -> Score:
        return await self._source.score(environment, ending)


class Person:
    """Somebody in the place of an engine: reads what a model would, and says what is typed."""

    def __init__(self, chat: Chat, ask: Callable[[str], str], thinking: bool) -> None:
        self._chat, self._ask, self._thinking = chat, ask, thinking
        self._seen = 0
        self.tools: list[str] = []

    async def generate(self, request_id: str, prompt_token_ids: TokenIds, sampling: SamplingParams) -> Completion:
        """Show what is new, and return what the person says, as tokens of the chat format."""
        import numpy as np

        from rollout.types import Completion

        ids = [int(token) for token in prompt_token_ids]
        print(self._chat.decode(ids[self._seen if self._seen < len(ids) else 0 :]))
        while True:
            try:
                message = said(await _in_daemon(self._lines), self.tools)
                break
            except EOFError:
                raise Left from None
            except ValueError as error:
                print(f"({error})")
        sampled = self._chat.say(message, self._thinking)[: sampling.max_tokens]
        self._seen = len(ids) + len(sampled)
        stopped = bool(sampled) and sampled[-1] in self._chat.stop_token_ids
        return Completion(
            token_ids=tuple(sampled),
            logprobs=np.zeros(len(sampled), np.float32),
            versions=np.zeros(len(sampled), np.int32),
            finish_reason="stop" if stopped else "length",
        )

    def _lines(self) -> str:
        line = self._ask("> ")
        while line.endswith("\\"):
            line = f"{line[:-1]}\n{self._ask('… ')}"
        return line


async def _in_daemon(work: Callable[[], str]) -> str:
    """Wait for work in a thread that the end of the program does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def run() -> None:
        try:
            loop.call_soon_threadsafe(done.set_result, work())
        except Exception as error:
            loop.call_soon_threadsafe(done.set_exception, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


def said(line: str, tools: Sequence[str]) -> Message:
    """The message that a typed line means. Raises ValueError for arguments of a tool that cannot be read."""
    name, _, rest = line.strip().partition(" ")
    if name not in tools:
        return {"role": "assistant", "content": line}
    call = {"type": "function", "function": {"name": name, "arguments": _arguments(rest.strip())}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _arguments(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        try:
            found: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"these arguments are not JSON: {error.msg} at column {error.colno}") from None
        return found
    words = shlex.split(text)
    if strange := [word for word in words if "=" not in word]:
        raise ValueError(f"write arguments as key=value or as JSON; {strange[0]!r} is neither")
    return {key: _value(value) for key, _, value in (word.partition("=") for word in words)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
