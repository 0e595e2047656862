"""The environment over reasoning-gym: its tasks, what it grades, and the families and parameters that it refuses."""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rl.paths import REPOSITORY
from rl.recipe.load import RecipeError, load_recipe
from rollout.envs import gym_library
from rollout.envs.gym_library import CHANGES, EVALUATES, GRADED_WRONGLY, LARGEST, NEEDS, Family, make_family, usable
from rollout.envs.reasoning import ReasoningTasks, answer_in
from rollout.types import Task
from tests.support import environment

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
SANDBOX = Sandbox(SandboxConfig(kind="unsafe-none"))


def tasks_of(family: str = "chain_sum", **settings: Any) -> ReasoningTasks:
    spec = environment("reasoning", family=family, **settings)
    assert isinstance(spec, ReasoningTasks)
    return spec


def score(spec: ReasoningTasks, task: Task, answer: str | None) -> float:
    async def scored() -> float:
        episode = spec.make(task, SANDBOX)
        parts = await episode.score(answer)
        await episode.close()
        return parts["solved"]

    return asyncio.run(scored())


def test_the_right_answer_scores_1_and_a_wrong_one_0() -> None:
    spec = tasks_of(parameters=SUMS, answer="text")
    for index in range(20):
        task = spec.generate(index, 0, "train")
        right = task.metadata["answer"]
        assert score(spec, task, f" {right}\n") == 1.0
        assert [score(spec, task, wrong) for wrong in (f"{right}0", "", "no", None)] == [0.0] * 4


@pytest.mark.parametrize(
    ("form", "text", "graded"),
    [
        ("text", " 4 - 1 is 3 ", "4 - 1 is 3"),
        ("number", "4 - 1 is 3.", "3"),
        ("number", "-0.5", "-0.5"),
        ("number", "it is three", None),
        ("tags", "<answer>4</answer>, no: <answer> 3\n</answer>", "3"),
        ("tags", "3", None),
    ],
)
def test_what_is_graded(form: str, text: str, graded: str | None) -> None:
    assert answer_in(text, form) == graded


@pytest.mark.parametrize(("form", "end"), [("text", "only."), ("number", "as a number."), ("tags", "and </answer>.")])
def test_the_question_says_how_to_answer_and_the_oracle_does_so(form: str, end: str) -> None:
    import random

    spec = tasks_of(parameters=SUMS, answer=form)
    task = spec.generate(0, 0, "train")
    assert task.messages[-1]["content"].endswith(end)
    *asked, answer = spec.demonstrate(task, random.Random(0))
    assert tuple(asked) == task.messages and score(spec, task, answer["content"]) == 1.0


def test_an_instruction_of_ones_own() -> None:
    task = tasks_of(parameters=SUMS, instruction="Shout.").generate(0, 0, "train")
    assert task.messages[-1]["content"].endswith("=\nShout.")


def test_examples_are_solved_training_tasks_and_the_same_for_all() -> None:
    spec = tasks_of(parameters=SUMS, answer="text", examples=3)
    first, second = (spec.generate(index, seed, "eval").messages for index, seed in ((0, 0), (7, 5)))
    assert first[:-1] == second[:-1] and [m["role"] for m in first] == ["user", "assistant"] * 3 + ["user"]
    held_out = {spec.generate(index, 0, "eval").messages[-1]["content"] for index in range(200)}
    assert not held_out & {message["content"] for message in first[:-1]}


def test_partial_credit_is_off_unless_it_is_asked_for() -> None:
    strict, lenient = (tasks_of(parameters=SUMS, answer="text", partial_credit=on) for on in (False, True))
    task = strict.generate(0, 0, "train")
    nearly = f"The answer is {task.metadata['answer']}"
    assert score(strict, task, nearly) == 0.0 and 0.0 < score(lenient, task, nearly) < 1.0


def test_a_grader_that_chokes_on_an_answer_gives_it_no_score() -> None:
    spec = tasks_of("number_sorting", answer="text")
    task = spec.generate(0, 0, "train")
    for answer in ("[[[", "{'a': 1}", "\0", "9" * 6000, "None", "[1, 'x', {}]"):
        assert score(spec, task, answer) == 0.0


def entries(families: Sequence[str], hash_seed: int) -> list[list[list[str]]]:
    """Some questions and answers of each family, as another process makes them."""
    script = (
        "import sys, json\nfrom rollout.envs.gym_library import Family, _families\n"
        "made = [Family(*_families()[name], {}) for name in sys.argv[1:]]\n"
        "print(json.dumps([[[e['question'], e['answer']] for e in map(f.__getitem__, range(12))] for f in made]))"
    )
    command = [sys.executable, "-c", script, *families]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    found: list[list[list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_tasks_are_the_same_in_every_process_but_for_the_families_that_are_refused() -> None:
    same = ["chain_sum", "leg_counting", "word_sorting"]
    changing = sorted(CHANGES - {"knight_swap"})  # which takes two seconds a task
    first, second = (entries([*same, *changing], hash_seed) for hash_seed in (1, 2))
    assert first[: len(same)] == second[: len(same)]
    assert [a == b for a, b in zip(first[len(same) :], second[len(same) :], strict=True)] == [False] * len(changing)


def test_a_family_with_too_few_tasks_says_so() -> None:
    few = tasks_of("count_bits", parameters={"min_n": 3, "max_n": 3})
    with pytest.raises(ValueError, match="has too few different ones; widen its parameters"):
        for split in ("train", "eval"):
            few.generate(0, 0, split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("family: rubiks_cube", "'rubiks_cube' cannot be used: its grader gives its own answers no full score"),
        ("family: countdown", "'countdown' cannot be used: its grader evaluates what the model wrote as Python"),
        ("family: word_ladder", "its tasks differ from process to process"),
        ("family: composite", "it mixes other families, which task sources do"),
        ("family: chain_sums", "reasoning-gym has no family 'chain_sums'; did you mean 'chain_sum'?"),
        (
            "family: chain_sum, parameters: {min_term: 2}",
            "has no parameter 'min_term', only allow_negation, max_digits",
        ),
        ("family: chain_sum, parameters: {seed: 2}", "has no parameter 'seed'"),
        ("family: chain_sum, parameters: {max_terms: 1}", "max_terms must be >= min_terms"),
        ("family: chain_sum, parameters: {max_terms: many}", "does not take the parameters {'max_terms': 'many'}"),
        ("family: chain_sum, answer: loud", "tasks.sources.0.environment.answer: expected"),
        ("answer: text", "tasks.sources.0.environment needs the key 'family'"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes: str, words: str, tmp_path: Path) -> None:
    quickstart = REPOSITORY / "recipes" / "quickstart.yaml"
    source = f"tasks.sources=[{{environment: {{name: reasoning, {changes}}}}}]"
    with pytest.raises(RecipeError) as refused:
        load_recipe(quickstart, ["sft=null", source])
    assert words in str(refused.value)


def test_a_recipe_with_it_is_read() -> None:
    source = "tasks.sources=[{environment: {name: reasoning, family: chain_sum, parameters: {max_terms: 2}}}]"
    recipe = load_recipe(REPOSITORY / "recipes" / "quickstart.yaml", ["sft.dataset=oracle", source])
    assert recipe.tasks.sources[0].label == "reasoning"


# ── The library: what is known of version 0.1.25, and told when it no longer holds ──


def test_the_facts_are_of_the_installed_version() -> None:
    assert importlib.metadata.version("reasoning-gym") == "0.1.25"


@pytest.mark.parametrize("family", sorted(GRADED_WRONGLY))
def test_the_graders_that_are_refused_are_still_wrong(family: str) -> None:
    made = Family(*gym_library._families()[family], {})
    entries = [made[number] for number in range(3)]
    assert any(made.score_answer(entry["answer"], entry) < 1.0 for entry in entries)


def test_the_families_whose_graders_evaluate_an_answer_are_those_that_are_refused() -> None:
    """Every call of eval, exec or sympy's parser in a grader, in the library's source."""
    found = set()
    for name, (family_class, _) in gym_library._families().items():
        tree = ast.parse(Path(sys.modules[family_class.__module__].__file__).read_text(encoding="utf-8"))
        graders = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "score_answer"]
        calls = {ast.unparse(call) for g in graders for call in ast.walk(g) if isinstance(call, ast.Call)}
        if any(
            text.startswith(("eval(answer", "parse_expr(answer", "sympy.parse_expr(answer", "sp.parse_expr(answer"))
            for text in calls
        ):
            found.add(name)
    assert found == EVALUATES


def test_packages_without_wheels_are_neither_installed_nor_left_behind() -> None:
    make_family("chain_sum", SUMS)
    for family, package in NEEDS.items():
        assert package not in sys.modules
        with pytest.raises(ValueError, match=f"it needs the package {package}, which has no wheels"):
            make_family(family, {})
    assert not set(NEEDS) & set(usable())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_family_that_can_be_used_grades_its_own_answers_as_right() -> None:
    names = usable()
    assert len(names) > 80
    for name in names:
        family = make_family(name, {})
        for number in (0, 12345, LARGEST - 1):
            entry = family[number]
            assert family.score_answer(entry["answer"], entry) == pytest.approx(1.0), name
