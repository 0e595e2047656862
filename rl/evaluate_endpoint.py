"""The driver of `./launch.sh eval RECIPE endpoint=URL`: agent loops in this process, a model that somebody serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.remote import Remote
from rl.config import Recipe
from rl.driver.health import check_eval_failures
from rl.evaluate import tell
from rl.exitcodes import FAILED
from rl.observe.console import Console
from rl.observe.evaluation import Evaluation
from rl.rundir.directory import EVALUATIONS
from rollout.agent.endpoint import CONTEXT, EndpointChat, EndpointEngine
from rollout.agent.episode import Agent
from rollout.agent.loop import run_group
from rollout.agent.rescore import answer_of
from rollout.agent.source import make_sources
from rollout.buffer.buffer import TooManyFailures
from rollout.cards import Card, card_of
from rollout.store.reading import FOLDER
from rollout.store.writing import GroupWriter
from rollout.tasks.stream import EVAL_SEED, task_stream
from rollout.types import Task

RETRIES = 3
REQUEST_S = 120.0
ALL_TRIES_S = 600.0


def run(recipe: Recipe, endpoint: str, served: str, api_key: str | None, against: Evaluation | None) -> int:
    """Evaluate the served model and return the exit code."""
    logging.getLogger("rollout").setLevel(logging.ERROR)  # failures are counted, and the last one is told
    folder = Path(recipe.run.dir or f"runs/{recipe.run.name}-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()
    with Console(steps=1) as console:
        with console.phase(f"evaluating {served} at {endpoint}"):
            remote = Remote(retries=RETRIES, requests_per_minute=None, deadline_s=ALL_TRIES_S)
            engine = EndpointEngine(endpoint, served, remote, api_key=api_key, timeout_s=REQUEST_S)
            tasks = task_stream(recipe.tasks, "eval", EVAL_SEED).once()
            cards = asyncio.run(_play(recipe, tasks, engine, folder))
        found = Evaluation.of_cards(cards, tasks, 0)
        path = folder / EVALUATIONS / "step-000000.json"
        found.save(path)
        try:
            check_eval_failures(cards, recipe.rollout.failure_share_limit)
        except TooManyFailures as error:
            console.error(str(error))
            return FAILED
        tell(console, found, against)
        console.settings({"evaluation": str(path)})
    return 0


async def _play(recipe: Recipe, tasks: Sequence[Task], engine: EndpointEngine, folder: Path) -> list[Card]:
    """Play the held-out tasks. The groups go to the folder's trajectory store."""
    sandbox = Sandbox(recipe.sandbox)
    sources = make_sources(recipe.tasks.sources, sandbox)
    if any(source.uses_sandbox for source in sources.values()):
        sandbox.require()
    config = recipe.eval.rollout(recipe.rollout).model_copy(update={"max_context": CONTEXT})
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    store = GroupWriter(folder / FOLDER, recipe.trajectories)
    places = asyncio.Semaphore(recipe.rollout.workers * recipe.rollout.groups_per_worker)

    async def card(number: int, task: Task) -> Card:
        async with places:
            agent = Agent(chat=EndpointChat(), engine=engine, config=config, seed=recipe.run.seed)
            source = sources[task.source]
            group = await run_group(agent, source, task, f"eval-0-{number}")
            address = await store.append(group, "eval")
        return card_of(group, address, votes=[source.vote(answer_of(one)) for one in group.trajectories])

    cards = await asyncio.gather(*(card(number, task) for number, task in enumerate(tasks)))
    await store.seal()
    for source in sources.values():
        await source.close()
    return cards
