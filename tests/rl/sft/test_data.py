"""Rows of the supervised stage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from rl.config import Recipe
from rl.recipe.load import RecipeError
from rl.sft.config import MixedDataset
from rl.sft.data import sft_rows
from rollout.tasks.config import DatasetConfig
from tests.support import MODEL, glm45, recipe_of

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
MINIMAL = {
    "model": {"path": str(MODEL), "dtype": "float32"},
    "sandbox": "unsafe-none",
    "trainer": {"optimizer": {"lr": 1e-3}},
}
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "reasoning_content": "r"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    {"role": "tool", "content": "t"},
    {"role": "assistant", "content": "d"},
]


def recipe(dataset: str, rows: int = 12, seed: int = 0, thinking: bool = True, train_size: int = 100) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        return recipe_of(
            Path(folder),
            {
                "run": {"seed": seed},
                "model": {"path": str(MODEL), "dtype": "float32"},
                "sandbox": "unsafe-none",
                "tasks": {"sources": [{"environment": "python"}, {"environment": "store"}], "train_size": train_size},
                "sft": {"dataset": dataset, "rows": rows, "optimizer": {"lr": 1e-3}},
                "rollout": {"thinking": thinking},
                "trainer": {"optimizer": {"lr": 1e-3}},
            },
        )


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained_text(dataset: str, thinking: bool = True) -> list[str]:
    chat = glm45()
    rows = sft_rows(recipe(dataset, thinking=thinking)).rows
    return [chat.decode([t for t, m in zip(r.token_ids, r.loss_mask, strict=True) if m]) for r in rows]


def test_the_oracle_of_every_source_demonstrates_and_the_same_recipe_gives_the_same_rows() -> None:
    rows = sft_rows(recipe("oracle")).rows
    assert len(rows) == 12 and rows == sft_rows(recipe("oracle")).rows
    assert rows != sft_rows(recipe("oracle", seed=1)).rows
    text = [glm45().decode(r.token_ids) for r in rows]
    assert sum('"name": "python"' in t for t in text) == sum('"name": "set"' in t for t in text) == 6
    assert sft_rows(recipe("oracle", train_size=2)).rows == rows, "an epoch of reinforcement does not bound the oracle"


def test_a_conversation_gives_one_row_per_user_message_with_history_as_the_format_shows_it(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"messages": TALK, "tools": [TOOL]})
    assert trained_text(path) == [
        "\n<think>r</think>\nb<|user|>",
        "\n<think></think>\n<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>"
        "\n<think></think>\nd<|user|>",
    ]


def test_without_thinking_the_reasoning_is_left_out(tmp_path: Path) -> None:
    assert trained_text(write(tmp_path / "d.jsonl", {"messages": TALK[:2]}), thinking=False) == ["\nb<|user|>"]


def test_parquet_rows_render_like_jsonl_rows(tmp_path: Path) -> None:
    import datasets

    row = {"messages": TALK, "tools": json.dumps([TOOL])}
    parquet = str(tmp_path / "d.parquet")
    datasets.Dataset.from_list([row]).to_parquet(parquet)
    assert trained_text(parquet) == trained_text(write(tmp_path / "d.jsonl", row))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tools": []}, r"d\.jsonl:2: it has no 'messages'; its columns are 'tools'"),
        ({"messages": TALK, "tools": "{"}, r"d\.jsonl:2: field 'tools': not JSON"),
        ({"messages": TALK, "tools": [3]}, r"d\.jsonl:2: field 'tools'\[0\] must be"),
        ({"messages": TALK[:5]}, r"d\.jsonl:2: field 'messages': a demonstration ends with an assistant message"),
    ],
)
def test_a_bad_row_is_named_with_its_field(tmp_path: Path, row: object, reason: str) -> None:
    path = write(tmp_path / "d.jsonl", {"messages": TALK}, row)
    with pytest.raises(ValueError, match=reason):
        sft_rows(recipe(path))


def test_a_row_that_no_micro_batch_can_hold_is_named(tmp_path: Path) -> None:
    long = recipe(write(tmp_path / "d.jsonl", {"messages": TALK[:2]}, {"messages": TALK}))
    fits = max(len(row) for row in sft_rows(long).rows)
    small = long.model_copy(update={"trainer": long.trainer.model_copy(update={"token_budget": fits - 1})})
    with pytest.raises(ValueError, match=rf"d\.jsonl:2: {fits} tokens, but trainer.token_budget is {fits - 1}: raise"):
        sft_rows(small)


def test_a_dataset_without_an_assistant_message_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no assistant message"):
        sft_rows(recipe(write(tmp_path / "d.jsonl", {"messages": TALK[:1]})))


def test_an_oracle_that_cannot_show_a_datasets_task_says_so(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": str(i)}], "payload": {"tests": "assert answer"}} for i in range(9)
    ]
    source = {"environment": "python", "dataset": write(tmp_path / "t.jsonl", *rows)}
    made = recipe("oracle")
    tasks = recipe_of(tmp_path, {**MINIMAL, "tasks": {"sources": [source]}}).tasks
    with pytest.raises(
        ValueError, match=r"oracle of environment 'python' cannot show it \(its payload: KeyError 'quest"
    ):
        sft_rows(made.model_copy(update={"tasks": tasks}))


def of_mixture(recipe_: Recipe, *parts: tuple[str, float], **keys: object) -> Recipe:
    assert recipe_.sft is not None
    mixture = tuple(
        MixedDataset(dataset=DatasetConfig(path=path, **keys), weight=weight)  # type: ignore[arg-type]
        for path, weight in parts
    )
    return recipe_.model_copy(update={"sft": recipe_.sft.model_copy(update={"dataset": None, "mixture": mixture})})


def test_a_mixture_takes_turns_by_weight_until_every_dataset_is_used_up(tmp_path: Path) -> None:
    def talk(word: str, count: int) -> str:
        rows = [{"prompt": "a", "completion": f"{word} {number}"} for number in range(count)]
        return write(tmp_path / f"{word}.jsonl", *rows)

    parts = ((talk("many", 20), 3.0), (talk("few", 2), 1.0))
    chat = glm45()
    rows = sft_rows(of_mixture(recipe("oracle", rows=100, thinking=False), *parts)).rows
    said = [chat.decode(list(row.token_ids)) for row in rows]
    assert sum("many" in text for text in said) == 20
    assert 6 <= sum("few" in text for text in said) <= 7, "two rows, repeated to keep their share"
    assert sum("few" in text for text in said[:8]) == 2
    assert len(sft_rows(of_mixture(recipe("oracle", rows=5), *parts)).rows) == 5


def test_bad_and_too_long_demonstrations_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"messages": TALK[:2]}, {"messages": []}, {"messages": TALK}, {"x": 1})
    long = recipe(write(tmp_path / "short.jsonl", {"messages": TALK[:2]}))
    budget = len(sft_rows(long).rows[0])
    small = long.model_copy(update={"trainer": long.trainer.model_copy(update={"token_budget": budget})})
    made = sft_rows(of_mixture(small, (path, 1.0), on_bad_row="skip"))
    assert len(made.rows) == 1
    (skipped,) = made.skipped
    assert skipped.rows == 3 and "d.jsonl:2: field 'messages' must be a non-empty list" in skipped.first


@pytest.mark.parametrize(
    ("sft", "words"),
    [
        ({}, "demonstrations come from `dataset` or from `mixture`: give one of them"),
        ({"dataset": "oracle", "mixture": [{"dataset": "a/b"}]}, "give one of them"),
        ({"mixture": [{"dataset": "oracle"}]}, "oracle stands alone"),
        ({"mixture": [{"dataset": "a/b", "weight": 0.0}]}, "sft.mixture.0.weight: expected greater than 0"),
    ],
)
def test_what_is_no_choice_of_demonstrations_is_refused(tmp_path: Path, sft: dict[str, object], words: str) -> None:
    made = {**MINIMAL, "tasks": {"sources": [{"environment": "python"}]}, "sft": {**sft, "optimizer": {"lr": 1e-3}}}
    with pytest.raises(RecipeError, match=words):
        recipe_of(tmp_path, made)
