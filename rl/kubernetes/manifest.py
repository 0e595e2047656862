"""The manifest of a run on Kubernetes: a RayJob of KubeRay, whose RayCluster exists for this run alone.

The fields are those of ray.io/v1 (https://ray-project.github.io/kuberay/reference/api/). `authOptions` is of KubeRay
1.5.1: the operator makes a Secret with a token, sets RAY_AUTH_MODE and RAY_AUTH_TOKEN from it in every container, and
sends the token with its own requests. A Secret of one's own would shut the operator out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from rl.config import Recipe
from rl.kubernetes.pods import Pods, pods_of
from rl.recipe.resolved import object_store_bytes

IMAGE, CLAIM, REPOSITORY, SHARED = "IMAGE-TO-NAME", "CLAIM-TO-NAME", "/sluice", "/shared"
RETRIES = 3
CPU_GIB, GPU_GIB = 4, 64
"""Memory to ask for: for each CPU core of a pod, and on top of that for each GPU (a rank keeps its states on the host
when it takes turns with engines)."""
_IMAGE_NAME = re.compile(r"[a-zA-Z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@\w+:\w+)?", re.ASCII)
_CLAIM_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
NAME_CHARACTERS = 47
"""KubeRay's limit for the name of a RayJob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a recipe does not say: the image, the claim of the shared volume, the GPUs of a machine, Ray's version.

    Raises:
        ValueError: Kubernetes would not take the name of the image or of the claim.
    """

    image: str | None
    claim: str | None
    gpus: int
    ray: str

    def __post_init__(self) -> None:
        if self.image is not None and not _IMAGE_NAME.fullmatch(self.image):
            raise ValueError(f"image={self.image!r} is no name of an image, such as registry.example/team/sluice:1")
        if self.claim is not None and not _CLAIM_NAME.fullmatch(self.claim):
            raise ValueError(
                f"claim={self.claim!r} is no name of a PersistentVolumeClaim: small letters, digits, dashes and dots"
            )


def manifest(recipe: Recipe, argv: Sequence[str], place: Place) -> str:
    """The YAML, below comments that say what must be edited. `argv` is the recipe's path and overrides.

    Raises:
        ValueError: the run does not fit into such pods, or its directory is not on the shared volume.
    """
    pods = pods_of(recipe, place.gpus)
    return _comments(place) + yaml.safe_dump(_job(recipe, argv, place, pods), sort_keys=False, width=10_000)


def _comments(place: Place) -> str:
    named = ((place.image, IMAGE, "image"), (place.claim, CLAIM, "claim"))
    edits = [
        f"EDIT: {dummy} is a placeholder: give {key}=NAME, or replace it." for name, dummy, key in named if not name
    ]
    lines = [
        *edits,
        "Apply it with: kubectl apply -f FILE. It needs KubeRay 1.5.1 or later, which makes the token of the cluster.",
        f"The image has this working tree at {REPOSITORY} with its environment, bubblewrap, and on PATH of a login",
        f'shell the commands of "ray[default]=={place.ray}": it submits the job, and the lock lacks it.',
        "The claim is of a volume that all pods may write to (ReadWriteMany).",
        "bubblewrap needs user namespaces: where they are forbidden, set the recipe's sandbox or a securityContext.",
        "CPU cores and memory are estimates; GPUs are counted from the recipe.",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _job(recipe: Recipe, argv: Sequence[str], place: Place, pods: Pods) -> dict[str, Any]:
    store = object_store_bytes(recipe)
    device = "cuda" if pods.count else "cpu"
    groups = [_worker_group(place, pods, store)] if pods.count else []
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job_name(recipe.run.name)},
        "spec": {
            "entrypoint": entrypoint(recipe, argv),
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "rayVersion": place.ray,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    "rayStartParams": _start(store, gpus=0) | {"dashboard-host": "0.0.0.0"},
                    "template": _pod("ray-head", place, device, cpus=pods.head_cpus, gpus=0, store=store),
                },
                "workerGroupSpecs": groups,
            },
        },
    }


def job_name(run: str) -> str:
    """The name of a run as Kubernetes takes one: small letters, digits and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    return f"sluice-{name}"[:NAME_CHARACTERS].rstrip("-")


def entrypoint(recipe: Recipe, argv: Sequence[str]) -> str:
    """The command of the run. The job's own cluster is at RAY_ADDRESS, which `auto` means; a retry resumes."""
    path = PurePosixPath(argv[0])
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{argv[0]}: name the recipe by its path in the repository, which is {REPOSITORY} in the image"
        )
    directory = recipe.run.dir or f"{SHARED}/{recipe.run.name}"
    if recipe.run.hostfile is not None:
        raise ValueError(f"run.hostfile={recipe.run.hostfile}: the pods are the machines here: leave it out")
    if not PurePosixPath(directory).is_relative_to(SHARED) or ".." in PurePosixPath(directory).parts:
        raise ValueError(f"run.dir={directory}: the shared volume is at {SHARED}: set run.dir to a path below it")
    added = ["run.ray_address=auto", f"run.dir={directory}", f"run.cache_dir={SHARED}/cache"]
    added += [] if recipe.resume == "must" else ["resume=auto"]
    return f"cd {REPOSITORY} && ./launch.sh {shlex.join([*argv, *added])}"


def _worker_group(place: Place, pods: Pods, store: int) -> dict[str, Any]:
    return {
        "groupName": "gpu",
        "replicas": pods.count,
        "minReplicas": pods.count,
        "maxReplicas": pods.count,
        "rayStartParams": _start(store, gpus=pods.gpus),
        "template": _pod("ray-worker", place, "cuda", cpus=pods.cpus, gpus=pods.gpus, store=store),
    }


def _start(store: int, gpus: int) -> dict[str, str]:
    return {"num-gpus": str(gpus), "object-store-memory": str(store)}


def _pod(name: str, place: Place, device: str, *, cpus: int, gpus: int, store: int) -> dict[str, Any]:
    """A pod's template. Its /dev/shm is memory of the pod: the object store, and as much again for transfers."""
    shared = -(-2 * store // 2**30)
    size = {"cpu": str(cpus), "memory": f"{cpus * CPU_GIB + gpus * GPU_GIB + shared}Gi"}
    size |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
    container = {
        "name": name,
        "image": place.image or IMAGE,
        "workingDir": REPOSITORY,
        "env": [
            {"name": "PYTHONPATH", "value": REPOSITORY},
            {"name": "RAY_worker_niceness", "value": "0"},
            {"name": "SLUICE_DEVICE", "value": device},
        ],
        "resources": {"requests": size, "limits": dict(size)},
        "volumeMounts": [{"name": "shared", "mountPath": SHARED}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": place.claim or CLAIM}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared}Gi"}},
    ]
    return {"spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes}}
