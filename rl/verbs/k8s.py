"""`k8s`: print a manifest with which KubeRay runs a recipe on Kubernetes.

    ./launch.sh k8s RECIPE [image=NAME] [claim=NAME] [gpus=8] [key=value …] > run.yaml

`image` has the repository and its environment, `claim` is a volume that all pods may write to, and `gpus` is the number
of GPUs in one machine. Nothing is started and no cluster is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl.exitcodes import DONE, NOTHING_STARTED
from rl.paths import REPOSITORY
from rl.recipe.machine import LOCKS
from rl.verbs.absent import is_file, no_such
from rl.verbs.lock import read_pins
from rl.verbs.usage import read_recipe, refuse

OWN = ("image", "claim", "gpus")
"""Arguments of the verb itself. The others are the recipe's."""
GPUS = "8"


def k8s(argv: Sequence[str]) -> int:
    """Print the manifest. `argv` is the recipe's path and what follows it."""
    if not argv or not is_file(argv[0]):
        return refuse(no_such(argv[0]) if argv else "k8s needs a recipe: ./launch.sh k8s RECIPE [key=value …]")
    own = dict(word.split("=", 1) for word in argv[1:] if word.partition("=")[0] in OWN and "=" in word)
    others = [word for word in argv if word.partition("=")[0] not in OWN]
    gpus = own.get("gpus", GPUS)
    if not gpus.isdecimal() or not int(gpus):
        return refuse(f"gpus={gpus}: give the number of GPUs in one machine, 1 or more; run.device=cpu uses none")
    recipe = read_recipe(others)
    if recipe is None:
        return NOTHING_STARTED
    from rl.kubernetes.manifest import Place, manifest

    ray = read_pins(REPOSITORY / "locks" / LOCKS["cpu"])["ray"]
    others[0] = _in_repository(others[0])
    try:
        place = Place(image=own.get("image"), claim=own.get("claim"), gpus=int(gpus), ray=ray)
        text = manifest(recipe, others, place)
    except ValueError as error:
        return refuse(str(error))
    print(text, end="")
    return DONE


def _in_repository(recipe: str) -> str:
    """The path of a recipe from the repository's root, where the run starts; one from elsewhere stays as it is."""
    path = Path(recipe).resolve()
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else recipe
