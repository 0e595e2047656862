"""What the committed tokenizer depends on."""

from __future__ import annotations

import pytest

from recipes.models.make_tiny_glm4_moe import segments
from rollout.envs import ENVIRONMENTS


def test_a_new_environment_leaves_the_committed_tokenizer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = segments()
    monkeypatch.setitem(ENVIRONMENTS, "another", object())
    assert segments() == before
