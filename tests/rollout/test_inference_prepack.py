"""The CPU expert-prepack workaround: still needed, and sufficient.

When the first test fails, vLLM has cured the fault: delete rollout/vllm_prepack.py and this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.transfer import ShmSender
from tests.rollout import inference_support as support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pushed_and_fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], ...]]:
    """Checksums of one checkpoint: freshly loaded, pushed without the workaround, and pushed with it."""
    path: Path = tmp_path_factory.mktemp("prepack") / "glm"
    support.make_glm(path)
    weights = support.checkpoint_weights(path)
    sender = ShmSender("test")
    with asyncio.Runner() as run, pytest.MonkeyPatch.context() as patch:
        engine = run.run(support.start(path, version=0))
        fresh = run.run(engine.checksums())
        patch.setattr("rollout.vllm_reload.forget_packed_experts", lambda modules: 0)
        run.run(support.push(engine, sender, weights, 1))
        without = run.run(engine.checksums())
        patch.undo()
        run.run(support.push(engine, sender, weights, 2))
        yield fresh, without, run.run(engine.checksums())
        run.run(engine.shutdown())
    sender.close()


def test_without_the_workaround_exactly_the_experts_are_wrong(
    pushed_and_fresh: tuple[dict[str, str], ...],
) -> None:
    fresh, without, _ = pushed_and_fresh
    wrong = {name for name in fresh if fresh[name] != without[name]}
    assert wrong == {name for name in fresh if name.endswith(("w13_weight", "w2_weight"))}


def test_with_the_workaround_all_weights_are_right(pushed_and_fresh: tuple[dict[str, str], ...]) -> None:
    fresh, _, right = pushed_and_fresh
    assert right == fresh


def test_another_vllm_is_refused_until_it_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from rollout import vllm_prepack

    monkeypatch.setattr(vllm_prepack, "TRIED_WITH", "0.0.1")
    with pytest.raises(RuntimeError, match=r"tried with 0\.0\.1 only"):
        vllm_prepack.check_version()
