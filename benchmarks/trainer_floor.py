"""Measure the learner's training step against plain PyTorch on the same tokens.

A random model of SmolLM2-135M's sizes in float32, supervised, one micro-batch a step. The plain side is a loop as one
would write it by hand: the transformers model with sdpa attention, all logits, cross-entropy, backward,
clip_grad_norm_ and torch.optim.AdamW(foreach=True). Rows of unequal length are padded on the right, where causal
attention needs no mask. With --lora both sides train PEFT's adapters of rank 16 around all linear layers. With two
ranks the plain side is DistributedDataParallel over gloo, and the learner divides everything (ZeRO-3).

Both sides live in the same processes and take steps in turn, the order changing from pair to pair. The first steps must
agree in loss and in the norm of the gradient; they are not timed. A ratio is the plain side's time over the learner's,
the median over the pairs: above 1 the learner is faster. The ratio of CPU time suffers less from other processes.

    .venv/bin/python -m benchmarks.trainer_floor [--ranks 2] [--lora] [--pairs 3] ["4 x 256" …]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from benchmarks.prefix_sharing import SMOLLM2_135M
from rl.batch.micro_batch import SftRow, lay_out
from rl.learner.config import LoraConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rl.learner.learner import Learner
from rl.learner.lora import linear_layers, peft_config
from rl.learner.model import seeded
from rl.losses.config import SUPERVISED
from rl.losses.objective import make_objective
from tests.ports import free_port

SEED, LR, CLIP, LORA_RANK = 0, 1e-5, 1.0, 16
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 1e-3
"""Relative. PyTorch's norm of a float32 tensor on a CPU is 0.17 % too small for 28 million normal numbers, and 0.06 %
for two halves of them. So two ranks of ZeRO-3, which have halves, find another norm than one."""


@dataclass(frozen=True, slots=True)
class Case:
    """The rows of a step: their lengths, and the share of each row's tokens that is trained, at its end."""

    name: str
    lengths: tuple[int, ...]
    trained: float = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a rank's process is to measure."""

    model: str
    """The folder of the model's config.json."""
    cases: tuple[Case, ...]
    lora: bool
    pairs: int


CASES = {
    case.name: case
    for case in (
        Case("4 x 256", (256,) * 4),
        Case("2 x 512", (512,) * 2),
        Case("1 x 1,024", (1024,)),
        Case("16 x 64", (64,) * 16),
        Case("4 x 256, half prompt", (256,) * 4, 0.5),
        Case("2 x 512, 3/4 tool results", (512,) * 2, 0.25),
        Case("8 of 32 to 256", (256, 201, 158, 124, 97, 77, 60, 51), 0.75),
    )
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a step found, over all ranks."""

    loss: float
    grad_norm: float


class Seconds(NamedTuple):
    """The duration of a step, and the processor time that this rank's process used in it."""

    wall: float
    cpu: float


Step = Callable[[], Result]


def rows_of(case: Case, vocabulary: int) -> list[SftRow]:
    """Random rows whose trained tokens weigh the same, in all 1."""
    random = np.random.default_rng(SEED)
    counts = [min(length - 1, round(case.trained * length)) for length in case.lengths]
    return [
        SftRow(
            token_ids=tuple(random.integers(0, vocabulary, length).tolist()),
            loss_mask=(0,) * (length - count) + (1,) * count,
            weight=1 / sum(counts),
        )
        for length, count in zip(case.lengths, counts, strict=True)
    ]


class Plain:
    """The loop by hand, on the learner's initial weights."""

    def __init__(self, config: PreTrainedConfig, ranks: int, lora: LoraConfig | None) -> None:
        with seeded(SEED):
            base = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").train()
        self._model: nn.Module = base
        if lora is not None:
            with seeded(SEED):
                self._model = get_peft_model(base, peft_config(lora, linear_layers(base)))
        self._ranks = ranks
        if ranks > 1:
            self._model = nn.parallel.DistributedDataParallel(self._model, gradient_as_bucket_view=True)
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)

    def step(self, tokens: Tensor, labels: Tensor, weight: float) -> Result:
        """One step on tokens [B, L], which predict labels [B, L]; those are -100 where nothing is trained."""
        self._optimizer.zero_grad()
        logits = self._model(input_ids=tokens, use_cache=False).logits
        loss = weight * nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss * self._ranks).backward()  # DistributedDataParallel averages
        norm = nn.utils.clip_grad_norm_(self._trained, CLIP, foreach=True)
        self._optimizer.step()
        total = loss.detach()
        if self._ranks > 1:
            torch.distributed.all_reduce(total)
        return Result(total.item(), norm.item())


def padded(rows: Sequence[SftRow]) -> tuple[Tensor, Tensor]:
    """The arguments of `Plain.step`."""
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full((len(rows), longest), -100)
    for number, row in enumerate(rows):
        ids, mask = torch.tensor(row.token_ids), torch.tensor(row.loss_mask)
        tokens[number, : len(row)] = ids
        labels[number, : len(row) - 1] = ids.where(mask == 1, -100)[1:]
    return tokens, labels


def make_learner(model: Path, ranks: int, lora: LoraConfig | None) -> Learner:
    optimizer = OptimizerConfig(lr=LR, clip_norm=CLIP)
    trainer = TrainerConfig(ranks=ranks, cpu_threads=torch.get_num_threads(), optimizer=optimizer)
    return Learner(str(model), ModelConfig(path=str(model), dtype="float32"), trainer, optimizer, SEED, "cpu", lora)


def sides(plain: Plain, learner: Learner, rows: Sequence[SftRow], rank: int, ranks: int) -> tuple[Step, Step]:
    """A step of each side on this rank's part of the rows."""
    mine, objective = rows[rank::ranks], make_objective(SUPERVISED, 0)
    batch, (tokens, labels) = lay_out(mine), padded(mine)

    def learner_step() -> Result:
        found = learner.train_step([batch], objective, LR)
        return Result(found["loss"], found["grad_norm"])

    return lambda: plain.step(tokens, labels, rows[0].weight), learner_step


def alternate(plain: Step, learner: Step, pairs: int) -> list[tuple[Seconds, Seconds]]:
    """The time of steps taken in turn."""
    found = []
    for pair in range(pairs):
        if pair % 2:
            plain_s, learner_s = timed(plain), timed(learner)
        else:
            learner_s, plain_s = timed(learner), timed(plain)
        found.append((plain_s, learner_s))
    return found


def timed(step: Step) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def check(plain: Result, learner: Result) -> None:
    """Raise RuntimeError unless both sides did the same work."""
    for name, bound in (("loss", LOSS_TOLERANCE), ("grad_norm", NORM_TOLERANCE)):
        expected, found = getattr(plain, name), getattr(learner, name)
        if not abs(found - expected) <= bound * abs(expected):
            raise RuntimeError(f"the sides differ in {name}: plain {expected}, learner {found}")


def table_row(case: Case, pairs: Sequence[tuple[Seconds, Seconds]]) -> str:
    ratios = [plain.wall / learner.wall for plain, learner in pairs]
    of_cpu = [plain.cpu / learner.cpu for plain, learner in pairs]
    plain_s, learner_s = (statistics.median(pair[side].wall for pair in pairs) for side in (0, 1))
    tokens = f"{sum(case.lengths):,} | {sum(sum(row.loss_mask) for row in rows_of(case, 2)):,}"
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    measured = f"{plain_s:.2f} | {learner_s:.2f} | {statistics.median(ratios):.2f} | {spread}"
    return f"| {case.name} | {tokens} | {measured} | {statistics.median(of_cpu):.2f} |"


def compare(work: Work) -> None:
    """One rank of both sides. The first rank prints the table's rows."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    adapter = LoraConfig(rank=LORA_RANK) if work.lora else None
    learner = make_learner(Path(work.model), ranks, adapter)
    config = AutoConfig.from_pretrained(work.model)
    plain = Plain(config, ranks, adapter)
    for case in work.cases:
        plain_step, learner_step = sides(plain, learner, rows_of(case, config.vocab_size), rank, ranks)
        check(plain_step(), learner_step())
        pairs = alternate(plain_step, learner_step, work.pairs)
        if rank == 0:
            print(table_row(case, pairs), flush=True)
    learner.close()


def run(
    config: PreTrainedConfig, cases: Sequence[Case], ranks: int, threads: int, lora: bool, pairs: int
) -> Iterator[str]:
    """The table's rows, measured in a fresh process for each rank. Cases with too few rows for the ranks are left out.

    Raises:
        RuntimeError: a rank failed, for instance because the sides differ.
    """
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "TORCH_COMPILE_DISABLE": "1",  # as in a run, where it is set before torch is imported
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="trainer-floor-") as folder:
        work = Work(folder, tuple(case for case in cases if len(case.lengths) >= ranks), lora, pairs)
        config.save_pretrained(folder)
        command = [sys.executable, "-m", "benchmarks.trainer_floor", "--rank-of", json.dumps(asdict(work))]
        logs, running = [Path(folder, f"log-{rank}.txt") for rank in range(ranks)], []
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                out = file if rank else subprocess.PIPE
                more = {"RANK": str(rank)}
                running.append(subprocess.Popen(command, env=environment | more, stdout=out, stderr=file, text=True))
        lines = running[0].stdout
        assert lines is not None, "it is a pipe"
        yield from (line.rstrip() for line in lines if line.startswith("|"))
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError("\n".join(log.read_text()[-2000:] for log in logs))


def work_of(text: str) -> Work:
    values = json.loads(text)
    return Work(**values | {"cases": tuple(Case(**case) for case in values["cases"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[*CASES], help=f"some of: {'; '.join(CASES)}")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of each rank")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--layers", type=int, default=30, help="of the decoder; fewer are for a busy machine")
    parser.add_argument("--pairs", type=int, default=3, help="timed steps of each side for a row of the table")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [CASES[name] for name in options.cases]
    if options.rank_of:
        compare(work_of(options.rank_of))
        return
    print("| rows | tokens | trained | plain, s | learner, s | ratio | of the pairs | of CPU time |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    config = LlamaConfig(**SMOLLM2_135M.to_dict() | {"num_hidden_layers": options.layers})
    for row in run(config, cases, options.ranks, options.threads, options.lora, options.pairs):
        print(row, flush=True)


if __name__ == "__main__":
    main()
