"""`reward-test`: score a run's stored trajectories again and show what changes, group by group.

    ./launch.sh reward-test RUN [REWARD …] [key=value …]

Without a reward those of the run's recipe are used, as their code is now. An override changes the recipe, as in
tasks.sources.0.weights.brevity=0. Parts that environments gave by themselves are kept as they were.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rewards.compose import TOTAL, check_parts
from rewards.errors import one_line
from rewards.sandbox.sandbox import Sandbox
from rl.config import Recipe
from rl.exitcodes import FAILED
from rl.recipe.load import RecipeError, load_recipe
from rl.verbs.usage import refuse
from rollout.agent.rescore import Again, GroupAgain, rescore
from rollout.agent.source import make_sources
from rollout.store import read
from rollout.store.reading import FOLDER

CONFIG = "config.yaml"
SHOWN = 40
"""The most groups that are shown one by one."""
_CHARACTERS = 160


def reward_test(argv: Sequence[str]) -> int:
    """Print what changes. `argv` is the run's directory, rewards and overrides."""
    if not argv:
        return refuse("reward-test needs a run: ./launch.sh reward-test RUN [REWARD …] [key=value …]")
    run = Path(argv[0])
    if not (run / CONFIG).is_file() or not (run / FOLDER).is_dir():
        return refuse(f"{run} is no run directory: it has no {CONFIG}, or no folder {FOLDER!r}")
    named = [argument for argument in argv[1:] if "=" not in argument]
    try:
        recipe = _recipe(run, named, [argument for argument in argv[1:] if "=" in argument])
        found = asyncio.run(_score(run, recipe, kept=bool(named)))
    except RecipeError as error:
        return refuse(str(error))
    except ValueError as error:
        return refuse(one_line(str(error), _CHARACTERS * 4))
    if not found:
        return refuse(f"{run} has no finished groups that could be scored")
    for text in _unknown_parts(recipe, found):
        print(text)
    print("\n".join(report(found)))
    return FAILED if any(member.failure for group in found for member in group.members) else 0


def _recipe(run: Path, named: Sequence[str], overrides: Sequence[str]) -> Recipe:
    recipe = load_recipe(run / CONFIG, overrides, checks=False)
    if not named:
        return recipe
    rewards = json.dumps(list(named))
    chosen = [f"tasks.sources.{number}.rewards={rewards}" for number in range(len(recipe.tasks.sources))]
    return load_recipe(run / CONFIG, [*overrides, *chosen], checks=False)


async def _score(run: Path, recipe: Recipe, kept: bool) -> list[GroupAgain]:
    """`kept`: other rewards are asked than the run had, so its weights and success rules may name parts of its own."""
    sandbox = Sandbox(recipe.sandbox)
    sources = make_sources(recipe.tasks.sources, sandbox)
    for config in recipe.tasks.sources:
        for name in ("weights", "success") if not kept else ():
            parts = (*sources[config.label].parts, TOTAL)
            check_parts(getattr(config, name), parts)
    if any(source.uses_sandbox for source in sources.values()):
        sandbox.require()
    try:
        return [group async for group in rescore(read(run), sources)]
    finally:
        for source in sources.values():
            await source.close()


def _unknown_parts(recipe: Recipe, groups: Sequence[GroupAgain]) -> Iterator[str]:
    """Remarks on weights and success rules of the run that name no part of the rewards which were asked now."""
    parts = {name for group in groups for m in group.members if m.now is not None for name in m.now.parts}
    for source in recipe.tasks.sources:
        strange = sorted({*source.weights, *source.success} - parts - {TOTAL})
        if parts and strange:
            names = ", ".join(strange)
            yield f"source {source.label!r}: no reward gives {names}, which its weights or success rule name"


def report(groups: Sequence[GroupAgain]) -> list[str]:
    """What changed, as lines: the groups one by one, then the whole."""
    changed = [group for group in groups if any(member.changed for member in group.members)]
    lines = [line for group in changed[:SHOWN] for line in _group_lines(group)]
    if len(changed) > SHOWN:
        lines.append(f"… and {len(changed) - SHOWN} more groups that change")
    members = [member for group in groups for member in group.members]
    failures = Counter(member.failure for member in members if member.failure)
    lines += [one_line(f"cannot be scored: {count} × {why}", _CHARACTERS) for why, count in failures.most_common()]
    scored = [member for member in members if member.now is not None]
    lines.append(
        f"{len(scored)} trajectories of {len(groups)} groups scored again: {sum(m.changed for m in scored)} of them "
        f"change, in {len(changed)} groups" + (f"; {len(members) - len(scored)} cannot be scored" if failures else "")
    )
    return [*lines, *_means(scored), *_signal(groups)] if scored else lines


def _group_lines(group: GroupAgain) -> list[str]:
    stored, members = group.stored, group.members
    trained = "evaluation" if stored.split == "eval" else f"step {stored.step}" if stored.step else "not trained"
    lines = [one_line(f"{stored.group.id} · {stored.group.task.id} · {trained}", _CHARACTERS)]
    for name in _names(members):
        before, now = [_part(m, name, False) for m in members], [_part(m, name, True) for m in members]
        if before != now:
            lines.append(f"  {name:<16} {_row(before)}  →  {_row(now)}")
    return lines


def _names(members: Iterable[Again]) -> list[str]:
    parts = {name for m in members for name in (*m.before.reward_parts, *(m.now.parts if m.now else ()))}
    return ["reward", *sorted(parts)]


def _part(member: Again, name: str, again: bool) -> float | None:
    """A value before or now; None where it does not apply, or could not be computed."""
    if again and member.now is None:
        return None
    reward = member.now.reward if again and member.now is not None else member.before.reward
    parts = member.now.parts if again and member.now is not None else member.before.reward_parts
    return reward if name == "reward" else parts.get(name)


def _row(values: Sequence[float | None]) -> str:
    return " ".join("–" if value is None else f"{value:.3g}" for value in values)


def _means(scored: Sequence[Again]) -> list[str]:
    """The means over the trajectories that could be scored, before and now."""
    lines = []
    for name in _names(scored):
        before = [value for m in scored if (value := _part(m, name, False)) is not None]
        now = [value for m in scored if (value := _part(m, name, True)) is not None]
        lines.append(f"  {name:<16} {_mean(before)} → {_mean(now)}")
    successes = [[float(bool(m.before.success)) for m in scored], [float(m.now.success) for m in scored if m.now]]
    return [*lines, f"  {'success':<16} {_mean(successes[0])} → {_mean(successes[1])}"]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4g}" if values else "–"


def _signal(groups: Sequence[GroupAgain]) -> list[str]:
    """How many groups have something to learn from, before and now: those whose rewards differ."""
    whole = [g for g in groups if all(m.now is not None for m in g.members)]
    before = sum(len({_part(m, "reward", False) for m in g.members}) > 1 for g in whole)
    now = sum(len({_part(m, "reward", True) for m in g.members}) > 1 for g in whole)
    return [f"  groups whose rewards differ: {before} → {now} of {len(whole)}"]
