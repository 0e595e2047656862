"""The manifest of a run for KubeRay, against the fields that ray.io/v1 and pods have."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from rl.config import Recipe
from rl.kubernetes.manifest import Place, entrypoint, job_name, manifest
from rl.kubernetes.pods import pods_of
from rl.recipe.load import load_recipe

AGENT = "recipes/agent_rl.yaml"


def of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, NUMBER, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(Ki|Mi|Gi|Ti)?$"}}
CONTAINER = of(
    {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "image": TEXT,
        "workingDir": TEXT,
        "env": {"type": "array", "items": of({"name": TEXT, "value": TEXT}, "name")},
        "resources": of({"requests": QUANTITIES, "limits": QUANTITIES}),
        "volumeMounts": {"type": "array", "items": of({"name": TEXT, "mountPath": TEXT}, "name", "mountPath")},
    },
    "name",
)
VOLUME = of(
    {
        "name": TEXT,
        "persistentVolumeClaim": of({"claimName": TEXT}, "claimName"),
        "emptyDir": of({"medium": {"enum": ["", "Memory"]}, "sizeLimit": TEXT}),
    },
    "name",
)
POD = of(
    {
        "spec": of(
            {
                "restartPolicy": {"enum": ["Always", "OnFailure", "Never"]},
                "containers": {"type": "array", "items": CONTAINER, "minItems": 1},
                "volumes": {"type": "array", "items": VOLUME},
            },
            "containers",
        )
    }
)
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
GROUP = {"groupName": TEXT, "replicas": NUMBER, "minReplicas": NUMBER, "maxReplicas": NUMBER}
CLUSTER = of(
    {
        "rayVersion": TEXT,
        "authOptions": of({"mode": {"enum": ["disabled", "token"]}}),
        "headGroupSpec": of({"rayStartParams": TEXTS, "template": POD}, "template"),
        "workerGroupSpecs": {
            "type": "array",
            "items": of(GROUP | {"rayStartParams": TEXTS, "template": POD}, "groupName", "template"),
        },
    },
    "headGroupSpec",
)
JOB = of(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": of({"name": NAME}, "name"),
        "spec": of(
            {"entrypoint": TEXT, "backoffLimit": NUMBER, "shutdownAfterJobFinishes": FLAG, "rayClusterSpec": CLUSTER}
        ),
    },
    "apiVersion", "kind", "metadata", "spec",
)  # fmt: skip
"""The part that is used of KubeRay's CustomResourceDefinition (ray-operator/apis/ray/v1) and of Kubernetes' pods.
Fields that are not listed are refused, as the API server's strict validation does."""


def recipe_of(*overrides: str, path: str = AGENT) -> Recipe:
    return load_recipe(path, list(overrides))


def job(*overrides: str, path: str = AGENT, gpus: int = 8) -> dict[str, Any]:
    place = Place(image="registry/sluice:1", claim="lustre", gpus=gpus, ray="2.60.0")
    text = manifest(recipe_of(*overrides, path=path), [path, *overrides], place)
    assert "EDIT" not in text
    parsed: dict[str, Any] = yaml.safe_load(text)
    Draft202012Validator(JOB).validate(parsed)
    return parsed


def test_gpus_cores_shared_memory_and_the_volume_follow_from_the_recipe() -> None:
    cluster = job()["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    head, worker = (one["template"]["spec"]["containers"][0] for one in (cluster["headGroupSpec"], group))
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 8
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "8" == group["rayStartParams"]["num-gpus"]
    assert (
        "nvidia.com/gpu" not in head["resources"]["limits"]
        and cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    )
    store = int(group["rayStartParams"]["object-store-memory"])
    (shm,) = (one["emptyDir"] for one in group["template"]["spec"]["volumes"] if one["name"] == "shm")
    assert int(shm["sizeLimit"].removesuffix("Gi")) * 2**30 >= 2 * store and shm["medium"] == "Memory"
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_job_that_failed_goes_on_in_the_same_directory_of_the_volume() -> None:
    spec = job("run.steps=7", "run.name=It's mine")["spec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    words = shlex.split(spec["entrypoint"])
    overrides = words[words.index(AGENT) + 1 :]
    assert words[:4] == ["cd", "/sluice", "&&", "./launch.sh"]
    resolved = recipe_of(*overrides)
    assert resolved.run.dir == "/shared/It's mine" and resolved.resume == "auto"
    assert resolved.run.ray_address == "auto" and resolved.run.steps == 7


def test_a_recipe_on_cpus_has_the_head_alone() -> None:
    cluster = job("run.device=cpu", path="recipes/quickstart.yaml")["spec"]["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert cluster["workerGroupSpecs"] == [] and {"name": "SLUICE_DEVICE", "value": "cpu"} in head["env"]


@pytest.mark.parametrize(
    ("ranks", "replicas", "width", "gpus", "pods"),
    [(8, 8, 1, 8, 2), (2, 6, 1, 8, 1), (6, 1, 4, 8, 2), (4, 2, 4, 8, 2), (1, 1, 1, 8, 1), (1, 3, 3, 4, 3)],
)
def test_an_engine_lies_within_one_pod(ranks: int, replicas: int, width: int, gpus: int, pods: int) -> None:
    overrides = (f"trainer.ranks={ranks}", "trainer.expert_parallel=1", f"inference.replicas={replicas}")
    assert pods_of(recipe_of(*overrides, f"inference.tensor_parallel={width}"), gpus).count == pods


def test_what_is_missing_is_marked_and_what_cannot_be_is_refused() -> None:
    recipe = recipe_of()
    nameless = Place(image=None, claim=None, gpus=8, ray="2.60.0")
    text = manifest(recipe, [AGENT], nameless)
    assert text.count("# EDIT: ") == 2 and text.count("IMAGE-TO-NAME") == 3
    Draft202012Validator(JOB).validate(yaml.safe_load(text))
    with pytest.raises(ValueError, match=r"inference.tensor_parallel=\d+: an engine stays on one machine"):
        pods_of(recipe_of("inference.tensor_parallel=8"), 4)
    split = ("trainer.ranks=2", "trainer.expert_parallel=1", "inference.replicas=2", "inference.tensor_parallel=1")
    split = (*split, "weight_sync.transport=shm")
    assert pods_of(recipe_of(*split), 4).count == 1
    with pytest.raises(ValueError, match=r"weight_sync.transport=shm stays on one machine, and .* 2 of gpus=2"):
        pods_of(recipe_of(*split), 2)
    with pytest.raises(ValueError, match=r"run.dir=runs/mine: the shared volume is at /shared"):
        entrypoint(recipe_of("run.dir=runs/mine"), [AGENT])
    with pytest.raises(ValueError, match=r"run.dir=/shared/../etc: the shared volume is at /shared"):
        entrypoint(recipe_of("run.dir=/shared/../etc"), [AGENT])
    with pytest.raises(ValueError, match=r"run.hostfile=hosts: the pods are the machines here"):
        entrypoint(recipe_of("run.hostfile=hosts"), [AGENT])
    with pytest.raises(ValueError, match="name the recipe by its path in the repository"):
        entrypoint(recipe, ["../mine.yaml"])


@pytest.mark.parametrize("image", ["a", "team/sluice:1.2", "registry.example:5000/a/b_c:v1", "a@sha256:" + "0" * 64])
@pytest.mark.parametrize("claim", ["runs", "shared-volume.1"])
def test_names_that_kubernetes_takes_are_taken(image: str, claim: str) -> None:
    Place(image=image, claim=claim, gpus=8, ray="2.60.0")


@pytest.mark.parametrize(
    ("named", "key"),
    [({"image": word}, "image") for word in ("", "my image", "a:b:c", "-a", "a\n")]
    + [({"claim": word}, "claim") for word in ("", "Runs", "a_b", "-a", "a-", "a" * 254)],
)
def test_names_that_kubernetes_does_not_take(named: dict[str, str], key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}=.* is no name of"):
        Place(**{"image": None, "claim": None, "gpus": 8, "ray": "2.60.0", **named})


def test_names_are_those_that_kubernetes_takes() -> None:
    assert job_name("It's mine_2!") == "sluice-it-s-mine-2"
    assert len(job_name("x" * 99)) == 47
