"""The workarounds for weights that vLLM packs on CPU are still needed, and they are sufficient.

When a test fails because nothing is wrong without a workaround, vLLM has mended that fault. Then delete the workaround
in rollout/cpu/prepack.py and its case here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.transfer.shm import ShmSender
from tests.rollout.engine import inference_support as support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Checksums = dict[str, str]


def fresh_and_pushed(path: Path, workaround: str) -> tuple[Checksums, Checksums, Checksums]:
    """Checksums of one checkpoint: freshly loaded, pushed over other weights without the workaround, and with it."""
    weights, sender = support.checkpoint_weights(path), ShmSender("test")
    with asyncio.Runner() as run, pytest.MonkeyPatch.context() as patch:
        engine = run.run(support.start(path, version=0))
        fresh = run.run(engine.checksums())
        run.run(support.push(engine, sender, support.perturbed(weights, seed=1), 1))
        patch.setattr(f"rollout.engine.reload.{workaround}", lambda modules: 0)
        run.run(support.push(engine, sender, weights, 2))
        without = run.run(engine.checksums())
        patch.undo()
        run.run(support.push(engine, sender, weights, 3))
        right = run.run(engine.checksums())
        run.run(engine.shutdown())
    sender.close()
    return fresh, without, right


@pytest.mark.parametrize(
    ("workaround", "make", "is_stale"),
    [
        ("forget_packed_experts", support.make_glm, lambda name: name.endswith(("w13_weight", "w2_weight"))),
        (
            "repack_tied_heads",
            lambda path: support.make_llama(path, tied=True),
            lambda name: name.endswith(":lm_head.cpu_linear"),
        ),
    ],
    ids=["experts", "tied head"],
)
def test_each_workaround_is_needed_and_sufficient(
    workaround: str, make: Callable[[Path], None], is_stale: Callable[[str], bool], tmp_path: Path
) -> None:
    make(tmp_path / "model")
    fresh, without, right = fresh_and_pushed(tmp_path / "model", workaround)
    wrong = {name for name in fresh if fresh[name] != without[name]}
    assert wrong and wrong == {name for name in fresh if is_stale(name)}, "without the workaround exactly these are"
    assert right == fresh


def test_another_vllm_is_refused_until_it_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from rollout.cpu import prepack as vllm_prepack

    monkeypatch.setattr(vllm_prepack, "TRIED_WITH", "0.0.1")
    with pytest.raises(RuntimeError, match=r"tried with 0\.0\.1 only"):
        vllm_prepack.check_version()
