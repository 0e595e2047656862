"""`plan`: show what a recipe resolves to, its processes, memory, pushes, disk and commands.

Nothing is started or downloaded.

    ./launch.sh plan RECIPE [machines=8] [gpus=8] [gpu_gib=80] [cores=128] [host_gib=1024] [key=value …]

`machines` and what follows describe the machines to plan for; without them it is this machine and those of
run.hostfile, taken to be like it, or of the SLURM job, with what the job has there. `run.device=cpu` runs anywhere
(ranks and engines share the cores). `cuda` wants one GPU for every trainer rank and `tensor_parallel` GPUs for every
engine, plus a CPU core for every rank, engine and rollout worker. `auto` is cuda where a GPU is seen, else cpu.
`rl.verbs.train` checks this machine; the driver checks the Ray instance that it has connected to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from rewards.errors import one_line
from rl.driver.check_chat import ChatReport, chat_report
from rl.exitcodes import DONE, NOTHING_STARTED
from rl.launch.others import allotted, other_machines
from rl.planning.machines import Described, machines_for
from rl.planning.plan import make_plan
from rl.planning.tensors import tensors_of
from rl.planning.text import describe
from rl.verbs.usage import read_recipe, refuse


def plan(argv: Sequence[str]) -> int:
    """Print what a recipe resolves to. `argv` is its path and what follows it."""
    if not argv:
        return refuse("plan needs a recipe: ./launch.sh plan RECIPE [key=value …]")
    own = [word for word in argv[1:] if word.partition("=")[0] in Described.model_fields]
    said = {name: value for name, _, value in (word.partition("=") for word in own)}
    words = [word for word in argv if word not in own]
    recipe = read_recipe(words)
    if recipe is None:
        return NOTHING_STARTED
    if problem := unsupported(recipe.model.path):
        return refuse(f"model.path={recipe.model.path}: {problem}")
    report = chat_report(recipe) if os.path.isdir(recipe.model.path) else ChatReport()
    if report.problems:
        return refuse("\n".join(report.problems))
    try:
        others = other_machines(recipe.run) if recipe.run.ray_address is None else None
        shares = allotted(recipe.run) if others is not None else {}
        machines = machines_for(recipe, _described(said), [*others.commands] if others is not None else [], shares)
        tensors = tensors_of(recipe)
        made = None if tensors is None else make_plan(recipe, tensors, machines)
    except ValueError as error:
        return refuse(str(error))
    command = ["./launch.sh", *words]
    print(describe(recipe, machines, made, command, others, report.warnings))
    return DONE


def _described(said: Mapping[str, str]) -> Described | None:
    """The machines that words describe; None without words."""
    if not said:
        return None
    try:
        return Described.model_validate({name: _number(text) for name, text in said.items()}, strict=True)
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(
            f"{' '.join(f'{name}={text}' for name, text in said.items())}: describe machines by numbers, as in "
            "machines=8 gpus=8 cores=128 gpu_gib=80 host_gib=1024"
        ) from error


def _number(text: str) -> object:
    """What a word says. An empty one is no number, and not YAML's null."""
    return yaml.safe_load(text) if text else text


def unsupported(model_path: str) -> str | None:
    """Why the trainer cannot compute a model that is on this machine; None if it can, or if the model is elsewhere."""
    from transformers import AutoConfig

    from rl.learner.selfcheck import check_forward

    if not os.path.isfile(Path(model_path) / "config.json"):
        return None
    try:
        check_forward(AutoConfig.from_pretrained(model_path, local_files_only=True))
    except Exception as error:  # whatever transformers makes of a broken config.json
        return one_line(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error), 400)
    return None
