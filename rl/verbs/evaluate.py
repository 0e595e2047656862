"""`eval`: evaluate a model on a recipe's held-out tasks.

    ./launch.sh eval RECIPE [model=DIRECTORY] [against=RUN|FILE] [key=value …]
    ./launch.sh eval RECIPE endpoint=URL served=NAME [key_env=VARIABLE] [against=RUN|FILE] [key=value …]

The model is a directory that `from_pretrained` loads, or a PEFT adapter, which is merged into its base first; or a
model that somebody serves under a name behind an OpenAI-compatible endpoint, which starts no engine. `against` names an
evaluation to compare with, task by task: its file, or the run whose last one it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl.exitcodes import NOTHING_STARTED
from rl.paths import REPOSITORY
from rl.verbs.absent import is_file, no_such
from rl.verbs.usage import read_recipe, refuse

if TYPE_CHECKING:
    from rl.config import Recipe
    from rl.observe.evaluation import Evaluation

OWN = ("against", "endpoint", "served", "key_env")
"""Arguments of the verb itself. The others are the recipe's."""
ADAPTER_CONFIG = "adapter_config.json"
MERGE = """
import glob
import sys
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoTokenizer

adapter, target = sys.argv[1:]
model = AutoPeftModelForCausalLM.from_pretrained(adapter, torch_dtype="auto")
there = {name.replace(".default.", ".") for name in model.state_dict() if ".lora_" in name}
written = {name for file in glob.glob(f"{adapter}/adapter_model*.safetensors") for name in safe_open(file, "pt").keys()}
if lost := sorted(written ^ there):
    sys.exit(f"PEFT finds no place for {len(lost)} weights, or no weights for places, as {lost[0]}; "
             "evaluate the merged model that the run has left")
model.merge_and_unload().save_pretrained(target)
AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path).save_pretrained(target)
"""


def evaluate(argv: Sequence[str]) -> int:
    """Evaluate. `argv` is the recipe's path and what follows it."""
    if not argv:
        return refuse("eval needs a recipe: ./launch.sh eval RECIPE [model=DIRECTORY] [against=RUN] [key=value …]")
    own = dict(argument.split("=", 1) for argument in argv[1:] if argument.partition("=")[0] in OWN)
    others = [argument for argument in argv if argument.partition("=")[0] not in OWN]
    try:
        against = other_evaluation(own["against"]) if "against" in own else None
    except ValueError as error:
        return refuse(str(error))
    if "endpoint" in own:
        return _run_endpoint(others, own, against)
    if "served" in own or "key_env" in own:
        return refuse("served and key_env belong to an endpoint: endpoint=URL")
    return run_without_trainer(others, "eval", against=against)


def _run_endpoint(argv: Sequence[str], own: Mapping[str, str], against: Evaluation | None) -> int:
    if "served" not in own:
        return refuse("endpoint needs the name of the model that it serves: served=NAME")
    key = own.get("key_env")
    if key is not None and not os.environ.get(key):
        return refuse(f"key_env={key}: this environment variable is not set")
    if not is_file(argv[0]):
        return refuse(no_such(argv[0]))
    recipe = read_recipe([argv[0], "run.dir=null", *argv[1:]])
    if recipe is None:
        return NOTHING_STARTED
    from rl.processes.guardian import run_guarded
    from rl.processes.tree import new_run_id
    from rl.recipe.check_sources import needs_sandbox
    from rl.recipe.machine import sandbox_error

    if needs_sandbox(recipe) and (unsafe := sandbox_error(recipe.sandbox)):
        return refuse(unsafe)

    def driver() -> int:
        from rl.evaluate_endpoint import run

        return run(without_trainer(recipe, "eval"), own["endpoint"], own["served"], key and os.environ[key], against)

    return run_guarded(driver, run_id=new_run_id())


def run_without_trainer(
    argv: Sequence[str], name: str, *, against: Evaluation | None = None, shows: bool = False
) -> int:
    """Play a recipe's held-out tasks in a run that is called `name` and has no trainer. `argv` is the recipe's path and
    overrides."""
    if not is_file(argv[0]):
        return refuse(no_such(argv[0]))
    try:
        overrides = [merged(argument) for argument in argv[1:]]
    except ValueError as error:
        return refuse(str(error))
    recipe = read_recipe([argv[0], "run.dir=null", "trainer.expert_parallel=1", *overrides])
    if recipe is None:
        return NOTHING_STARTED
    return _run(without_trainer(recipe, name), against, shows)


def without_trainer(recipe: Recipe, name: str) -> Recipe:
    """The recipe without its trainer."""
    run = recipe.run if recipe.run.dir else recipe.run.model_copy(update={"name": f"{name}-{recipe.run.name}"})
    return recipe.model_copy(update={"run": run, "sft": None, "lora": None, "placement": "split", "resume": "never"})


def other_evaluation(name: str) -> Evaluation:
    """The evaluation that `against` names. Raises ValueError if it names none."""
    from rl.observe.evaluation import Evaluation
    from rl.rundir.directory import EVALUATIONS

    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted((path / EVALUATIONS).glob("step-*.json"))
        if not found:
            raise ValueError(f"against={name}: there is no evaluation in it")
        path = found[-1]
    return Evaluation.load(path)


def merged(override: str) -> str:
    """The override, with a model that is an adapter replaced by its base with the adapter merged into it.

    Raises:
        ValueError: the two cannot be merged; the message says why.
    """
    name, _, value = override.partition("=")
    adapter = Path(value).expanduser()
    if name not in ("model", "model.path") or not (adapter / ADAPTER_CONFIG).is_file():
        return override
    digest = hashlib.sha256()
    for file in sorted(adapter.glob("adapter_*")):
        digest.update(file.read_bytes())
    target = REPOSITORY / "runs" / "cache" / f"merged-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        print(f"merging the adapter {adapter} into {base} …", flush=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", MERGE, str(adapter), str(partial)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode != 0:
            why = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"{override}: the adapter cannot be merged into {base}: {why}")
        partial.rename(target)
    return f"{name}={target}"


def _run(recipe: Recipe, against: Evaluation | None, shows: bool) -> int:
    from rl.processes.guardian import run_guarded
    from rl.processes.tree import new_run_id
    from rl.verbs.train import lacking

    if missing := lacking(recipe, trains=False):
        return refuse("\n".join(missing))
    run_id = new_run_id()

    def driver() -> int:
        from rl.evaluate import run

        return run(recipe, run_id, against, shows)

    return run_guarded(driver, run_id=run_id)
