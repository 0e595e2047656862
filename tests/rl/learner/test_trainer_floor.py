"""The learner and plain PyTorch find the same loss and gradient norm. `benchmarks.trainer_floor` compares speeds."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from benchmarks.trainer_floor import Case, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CASES = (Case("of one length", (12,) * 4), Case("ragged", (16, 9, 5, 3), 0.5))
TINY = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(("ranks", "lora"), [(1, False), (1, True), (2, False)])
def test_both_sides_agree_and_every_case_has_its_row(ranks: int, lora: bool) -> None:
    rows = run(TINY, CASES, ranks, threads=1, lora=lora, pairs=1)
    assert [row.split(" | ")[:3] for row in rows] == [["| of one length", "48", "44"], ["| ragged", "33", "16"]]
