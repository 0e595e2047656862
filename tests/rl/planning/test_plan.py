"""The plan of a recipe: what lies on each device and machine, what does not fit, and what is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rl.config import Recipe
from rl.driver.layout import Node
from rl.launch.slurm import Share
from rl.planning.fit import problems
from rl.planning.flow import STAGED, checkpoint_bytes, push_of, step_s, trajectory_bytes
from rl.planning.machines import Described, Machines, machines_for
from rl.planning.numbers import size
from rl.planning.plan import Plan, fullest, make_plan, turns
from rl.planning.tensors import tensors_of
from rl.planning.text import describe
from rl.recipe.load import load_recipe
from rl.recipe.resolved import object_store_bytes
from rl.verbs.plan import plan as plan_verb
from tests.rl.planning.cases import CLUSTER, QUICKSTART, SHRUNK

GIB = 2**30
AIR = 106_852_245_504
"""GLM-4.5-Air's parameters."""


@pytest.fixture(autouse=True)
def empty_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If a recipe's model were in the real one, its own config would be counted."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def cluster(gpu_gib: float = 80.0, *, count: int = 8, gpus: int = 8, host_gib: float = 1024.0) -> Machines:
    return Machines.alike(
        [f"machine-{number}" for number in range(count)],
        cores=128,
        gpus=gpus,
        gpu_bytes=int(gpu_gib * GIB),
        host_bytes=int(host_gib * GIB),
    )


def planned(recipe: Recipe, machines: Machines) -> Plan:
    tensors = tensors_of(recipe)
    assert tensors is not None
    return make_plan(recipe, tensors, machines)


def parts(memory: object) -> dict[str, int]:
    return {part.name: part.bytes for part in memory.parts}  # type: ignore[attr-defined]


def test_states_of_the_cluster_recipe_by_hand() -> None:
    made = planned(load_recipe(CLUSTER), cluster())
    trainer, engine = parts(made.trainer), parts(made.engine)
    assert trainer["weights"] == pytest.approx(AIR * 2 / 32, rel=1e-6)
    assert trainer["gradients"] == pytest.approx(AIR * 4 / 32, rel=1e-6)
    assert trainer["optimizer states"] == pytest.approx(AIR * 12 / 32, rel=1e-6)
    assert engine["weights"] == AIR * 2 // 8
    assert engine["KV cache"] == int(0.85 * 80 * GIB) - engine["weights"], "engine_args.gpu_memory_utilization"
    assert "optimizer step" not in trainer, "it has the memory that activations had"
    assert made.push.bytes == 2 * AIR and made.push.transport == "nccl" and not made.push.stages


def test_the_recipes_fit_the_machines_that_they_name() -> None:
    assert problems(planned(load_recipe(CLUSTER), cluster())) == []
    big = ["model=zai-org/GLM-4.5", "trainer.ranks=128", "trainer.expert_parallel=32"]
    assert problems(planned(load_recipe(CLUSTER, big), cluster(141, count=20))) == []
    assert problems(planned(load_recipe("recipes/moe_one_node.yaml"), cluster(141, count=1))) == []
    assert problems(planned(load_recipe("recipes/lora_single_gpu.yaml"), cluster(24, count=1, gpus=1))) == []


def test_what_does_not_fit_names_its_largest_part_and_a_key_with_a_value_that_is_enough() -> None:
    (found,) = problems(planned(load_recipe(CLUSTER, ["trainer.ranks=16"]), cluster()))
    assert re.fullmatch(
        r"a trainer rank's GPU needs 132\.\d GiB and has 79\.0 GiB; the largest part is optimizer states "
        r"\(74\.6 GiB\): raise trainer\.ranks, 32 is enough",
        found,
    )
    assert problems(planned(load_recipe(CLUSTER, ["trainer.ranks=32"]), cluster())) == []
    (found,) = problems(planned(load_recipe(CLUSTER, ["inference.tensor_parallel=2"]), cluster()))
    assert "has 0.0 MiB for the KV cache, and the 16384 tokens of rollout.max_context need" in found
    assert found.endswith("raise inference.tensor_parallel, 4 is enough")
    (found,) = problems(planned(load_recipe(CLUSTER, ["inference.tensor_parallel=[8,8,2,8]"]), cluster()))
    assert found.endswith("raise inference.tensor_parallel"), "the narrowest has no room, and no one value is enough"
    assert problems(planned(load_recipe(CLUSTER, ["inference.tensor_parallel=[8,4,4,8]"]), cluster())) == []
    long = ["trainer.token_budget=65536", "trainer.logprob_chunk=64"]
    (found,) = problems(planned(load_recipe(CLUSTER, long), cluster()))
    assert found.endswith("the largest part is activations (49.5 GiB): lower trainer.token_budget, 32768 is enough")


def test_machines_that_are_too_few_are_told_by_the_layout() -> None:
    (found,) = problems(planned(load_recipe(CLUSTER), cluster(count=7)))
    assert "trainer ranks 24 to 31 find no GPU" in found and "more machines" in found


def test_offloaded_states_lie_on_the_host() -> None:
    words = ["trainer.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"]
    recipe = load_recipe("recipes/moe_one_node.yaml", words)
    made, before = (
        planned(recipe, cluster(count=1)),
        planned(load_recipe("recipes/moe_one_node.yaml"), cluster(count=1)),
    )
    moved = sum(part.bytes for part in before.trainer.parts if part.name in ("gradients", "optimizer states"))
    assert before.trainer.bytes(host=False) - made.trainer.bytes(host=False) == moved
    (found,) = problems(planned(recipe, cluster(count=1, host_gib=400)))
    assert found.startswith("a machine needs") and "the largest part is trainer ranks" in found


def test_engines_that_take_turns_share_the_gpus() -> None:
    made = planned(load_recipe("recipes/moe_one_node.yaml"), cluster(141, count=1))
    weights = 30_532_122_624 * 2
    assert turns(made)["pushing"] == pytest.approx(weights / 8 + weights / 4 + 4 * 512 * 2**20, rel=1e-3)
    assert turns(made)["training"] == made.trainer.bytes(host=False)
    host = {part.name: part.bytes for part in fullest(made)[0]}
    assert host["trainer ranks"] == pytest.approx(30_532_122_624 * 18, rel=1e-3) and host["engines"] == 2 * weights


def test_a_machine_without_gpus_holds_every_process_and_one_staged_version() -> None:
    recipe = load_recipe(QUICKSTART, ["run.device=cpu", "inference.replicas=2"])
    made = planned(recipe, machines_for(recipe, None, []))
    host = {part.name: part.bytes for part in fullest(made)[0]}
    assert host["trainer ranks"] == 2 * made.trainer.bytes() and host["engines"] == 2 * made.engine.bytes()
    assert host["staged push"] == made.push.bytes == 4 * made.tensors.base
    assert host["object store"] == object_store_bytes(recipe)
    small = planned(recipe, machines_for(recipe, Described(host_gib=1), []))
    (found,) = problems(small)
    assert found.startswith("a machine needs") and "and has 1.0 GiB; the largest part is" in found


def test_engines_on_other_machines_have_a_staged_version_each() -> None:
    recipe = load_recipe(QUICKSTART, ["run.device=cpu", "inference.replicas=2"])
    made = planned(recipe, machines_for(recipe, None, ["second"]))
    assert made.push.transport == "gloo" and made.push.stages
    assert made.layout is not None and made.layout.engines == (1, 0)


def test_a_checkpoint_of_the_quickstart_has_the_size_of_a_real_one() -> None:
    """Measured: 18,081,593 bytes with tokenizer and JSON, 13,457,788 of shards and 4,477,496 of weights."""
    recipe = load_recipe(QUICKSTART)
    tensors = tensors_of(recipe)
    assert tensors is not None
    assert checkpoint_bytes(recipe, tensors) == pytest.approx(18_081_593, rel=0.02)


def test_trajectories_are_the_more_the_longer_they_may_be() -> None:
    short, long = (load_recipe(QUICKSTART, [f"rollout.max_context={size}"]) for size in (256, 512))
    assert trajectory_bytes(long) - trajectory_bytes(short) == pytest.approx(64 * 256 * 4.6, abs=1)


def test_the_time_of_a_step_is_that_of_the_run_directory(tmp_path: Path) -> None:
    assert step_s(load_recipe(QUICKSTART, [f"run.dir={tmp_path}"])) is None
    lines = [{"step": step, "time/step_s": float(step)} for step in (1, 2, 9)] + [{"step": 9, "eval/success": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert step_s(load_recipe(QUICKSTART, [f"run.dir={tmp_path}"])) == 2.0


def test_a_push_of_the_adapter_alone_is_small() -> None:
    recipe = load_recipe("recipes/lora_single_gpu.yaml")
    tensors = tensors_of(recipe)
    assert tensors is not None and push_of(recipe, tensors, "cuda", 1).bytes == 2 * tensors.trained
    assert tensors.trained < tensors.base / 50


def test_the_transports_that_stage_are_those_whose_senders_say_so() -> None:
    from rollout.transfer.gloo import GlooSender
    from rollout.transfer.group import GroupSender
    from rollout.transfer.ipc import IpcSender
    from rollout.transfer.shm import ShmSender

    senders = {"shm": ShmSender, "gloo": GlooSender, "nccl": GroupSender, "ipc": IpcSender}
    assert {name for name, sender in senders.items() if sender.stages} == {*STAGED}


def test_machines_are_known_described_or_assumed() -> None:
    recipe = load_recipe(CLUSTER)
    assumed = machines_for(recipe, None, [])
    assert (len(assumed.nodes), assumed.gpus, assumed.assumed) == (8, 64, True) and "gpu_gib=" in assumed.known
    described = machines_for(recipe, Described(machines=4, gpus=16, gpu_gib=141.0), [])
    assert (len(described.nodes), described.gpus, described.gpu_bytes) == (4, 64, 141 * GIB)
    assert not described.assumed
    named = machines_for(load_recipe(CLUSTER, SHRUNK), None, ["node-1", "node-2"])
    assert [node.id for node in named.nodes] == ["this machine", "node-1", "node-2"] and named.gpus == 0
    joined = machines_for(load_recipe(CLUSTER, [*SHRUNK, "run.ray_address=auto"]), None, [])
    assert joined.known.startswith("not asked: the cluster at auto")


def test_each_machine_of_a_slurm_job_is_planned_with_what_the_job_has_there() -> None:
    recipe = load_recipe(QUICKSTART, ["run.device=cpu", "rollout.workers=3"])
    known = {
        "node-2": Share(cores=96, gpus=0, memory_bytes=2 * GIB),
        "node-1": Share(cores=3, gpus=0, memory_bytes=None),
    }
    found = machines_for(recipe, None, ["node-1", "node-2"], known)
    here = found.nodes[0].cpus
    assert [node.cpus for node in found.nodes] == [here, 3, 96] and found.cores == here + 99
    assert found.host_bytes == [found.host_bytes[0], found.host_bytes[0], 2 * GIB]
    assert found.known == "as the SLURM job has them"
    text = describe(recipe, found, planned(recipe, found), ["./launch.sh"])
    assert f"1 machine of 3 CPU cores, {size(found.host_bytes[0])} and 1 machine of 96 CPU cores, 2.0 GiB, as" in text
    tight = replace(found, host_bytes=[*found.host_bytes[:2], 100 * 2**20])
    parts, room = fullest(planned(recipe, tight))
    assert room == 100 * 2**20 and sum(part.bytes for part in parts) > room, "the worker there does not fit"


def test_engines_and_ranks_go_where_a_job_has_gpus_for_them() -> None:
    recipe = load_recipe(CLUSTER, ["trainer.ranks=32", "inference.replicas=2", "inference.tensor_parallel=8"])
    sizes = [8, 8, 8, 8, 4, 4, 2, 6]
    nodes = [Node(id=f"n{place}", address=f"n{place}", cpus=64, gpus=gpus) for place, gpus in enumerate(sizes)]
    made = planned(recipe, Machines(nodes=nodes, gpu_bytes=80 * GIB, host_bytes=[2048 * GIB] * len(nodes)))
    assert made.layout is not None and len({*made.layout.trainers}) == 6, "an engine takes a whole machine of eight"
    text = describe(recipe, made.machines, made, ["./launch.sh"])
    assert "8 machines: 48 GPUs, 512 CPU cores" in text and "can start there" in text
    narrow = replace(made.machines, nodes=[replace(node, gpus=6) for node in nodes])
    assert "the largest here has 6 GPUs" in describe(recipe, narrow, planned(recipe, narrow), ["./launch.sh"])


def test_the_text_has_every_section_and_the_verdict() -> None:
    recipe = load_recipe(CLUSTER)
    text = describe(recipe, cluster(), planned(recipe, cluster()), ["./launch.sh", "my recipe.yaml"])
    titles = [line.strip("─ ") for line in text.splitlines() if line.startswith("──")]
    wanted = ["resolved recipe", "derived", "processes", "memory", "pushes", "disk", "commands", "hardware", "remarks"]
    assert titles == wanted[: len(titles)] and len(titles) >= 8
    assert "8 machines of 8 GPUs of 80.0 GiB, 128 CPU cores, 1024.0 GiB" in text
    assert re.search(r"machine-0 +driver, buffer, trainer-0…7, worker-0", text)
    assert "106.9 B parameters (106,852,245,504) in bfloat16" in text and "32 trainer ranks, each with" in text
    assert "4 engines, each with 68.0 GiB on each of its 8 GPUs" in text
    assert "staleness: a trained token is at most 2 versions old" in text
    assert "./launch.sh 'my recipe.yaml'" in text
    assert text.rstrip().split("── remarks")[0].rstrip().endswith("can start there\nmemory: every process fits")


def test_a_model_that_nobody_knows_is_planned_without_its_memory() -> None:
    recipe = load_recipe(CLUSTER, ["model=owner/no-such-model", "model.renderer=qwen3", "trainer.expert_parallel=1"])
    text = describe(recipe, cluster(), None, ["./launch.sh", "recipe.yaml"])
    assert "── memory ──\nunknown: the config.json of owner/no-such-model is not on this machine" in text
    assert "can start there" in text


def test_the_verb_takes_words_for_machines_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_verb([str(QUICKSTART), "machines=2", "gpus=2", "gpu_gib=24", "run.steps=3"]) == 0
    said = capsys.readouterr().out
    assert "2 machines of 2 GPUs of 24.0 GiB, 32 CPU cores" in said and "steps: 3" in said
    assert f"./launch.sh {QUICKSTART} run.steps=3" in said
    assert plan_verb([str(QUICKSTART), "gpus=0", "cores=4"]) == 0
    assert "this machine of 4 CPU cores, 1024.0 GiB" in capsys.readouterr().out
    for word in (
        "gpus=-1",
        "machines=0",
        "gpu_gib=many",
        "cores=1.5",
        "host_gib=[1",
        "machines=",
        "machines=1000000000",
    ):
        assert plan_verb([str(QUICKSTART), word]) == 2
        refused = capsys.readouterr().err
        assert f"{word}: describe machines by numbers, as in machines=8" in refused


def test_commands_on_other_machines_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"node-{number}\n" for number in range(1, 7)))
    assert plan_verb([str(QUICKSTART), f"run.hostfile={hostfile}", "run.device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "7 machines" in said and "and on the machines of run.hostfile, started by it:" in said
    assert (
        re.search(r"ssh .* node-1 .*launch\.sh node", said)
        and "  and 2 more" in said
        and "node-5 " not in (said.split("── commands")[1].split("── hardware")[0])
    )
    assert plan_verb([str(QUICKSTART), f"run.hostfile={tmp_path / 'absent'}", "run.device=cpu"]) == 2


def test_without_gradient_checkpointing_everything_is_kept(tiny_llama: Path) -> None:
    with_it, without = (
        planned(
            load_recipe(CLUSTER, [f"model={tiny_llama}", *SHRUNK, f"trainer.gradient_checkpointing={value}"]),
            machines_for(load_recipe(CLUSTER, SHRUNK), None, []),
        )
        for value in ("true", "false")
    )
    inputs = 2 * 16384 * 8 * 4
    layer = parts(without.trainer)["activations"] // 2
    assert parts(with_it.trainer)["activations"] == pytest.approx(inputs + layer, rel=0.1)


def test_the_moe_of_200_million_parameters_is_counted_exactly(models: Callable[[str], Path]) -> None:
    recipe = load_recipe(QUICKSTART, [f"model={models('moe')}"])
    made = planned(recipe, machines_for(recipe, Described(machines=1, gpus=3), []))
    experts, others = 10 * 16 * 3 * 512 * 640, made.tensors.base - 10 * 16 * 3 * 512 * 640
    assert made.tensors.base == 208_761_728
    assert parts(made.trainer)["weights"] == pytest.approx(4 * (experts / 2 + others / 2), rel=1e-6)
