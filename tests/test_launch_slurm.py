"""launch.sh in a job of SLURM: where the repository is, on which machine it goes on, and what it refuses.

In a bare checkout whose `scontrol` and `srun` are small scripts; tests/e2e/test_slurm.py has a real cluster.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_launch import Checkout, checkout, refused

__all__ = ["checkout"]

SCONTROL = """#!/bin/sh
case "$*" in
    "show job 12") printf 'JobId=12 JobName=x\\n   Command=%s\\n   WorkDir=/\\n' "$SUBMITTED" ;;
    "show hostnames node-[1-2]") printf 'node-1\\nnode-2\\n' ;;
    *) exit 1 ;;
esac
"""
SRUN = '#!/bin/sh\necho "srun $*"\nenv | grep ^SLURM\n'
JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node-[1-2]", "SLURMD_NODENAME": "node-1", "SLURM_NTASKS": "8"}


@pytest.fixture
def in_job(checkout: Checkout) -> Checkout:
    (checkout.root / "rl" / "cli.py").touch()
    for tool in ("sed", "env"):
        (checkout.bin / tool).symlink_to(str(shutil.which(tool)))
    checkout.stub("scontrol", SCONTROL)
    checkout.stub("srun", SRUN)
    checkout.settings |= JOB
    return checkout


def spooled(checkout: Checkout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of launch.sh, as SLURM does, in the folder with the recipe."""
    script = checkout.bin.parent / "job00012" / "slurm_script"
    script.parent.mkdir(exist_ok=True)
    shutil.copy(checkout.root / "launch.sh", script)
    return subprocess.run(
        [script, *arguments],
        cwd=checkout.root,
        env=checkout.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_copy_finds_the_repository_by_the_script_that_was_submitted(in_job: Checkout) -> None:
    in_job.settings |= {
        "SUBMITTED": f"{in_job.root}/launch.sh recipe.yaml run.dir=/a/launch.sh",
        "SLURM_SUBMIT_DIR": "/",
    }
    done = spooled(in_job, "recipe.yaml")
    assert f"with PYTHONPATH={in_job.root}\n" in done.stdout, done.stderr


def test_a_copy_finds_the_repository_by_the_folder_that_it_was_submitted_from(in_job: Checkout) -> None:
    in_job.settings |= {"SUBMITTED": "(null)", "SLURM_SUBMIT_DIR": str(in_job.root)}
    assert f"with PYTHONPATH={in_job.root}\n" in spooled(in_job, "recipe.yaml").stdout


def test_a_copy_without_a_repository_says_where_it_looked(in_job: Checkout, tmp_path: Path) -> None:
    in_job.settings |= {"SUBMITTED": f"{tmp_path}/other.sh", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = spooled(in_job, "recipe.yaml")
    assert refused(done, f"({tmp_path}/other.sh)") and f"({tmp_path})" in done.stderr


def test_on_a_node_of_the_job_it_stays_and_elsewhere_it_goes_on_on_the_first(in_job: Checkout) -> None:
    assert in_job.launch("recipe.yaml").stdout.startswith("ran: ")
    in_job.settings["SLURM_CONF"] = "/etc/slurm.conf"
    for name in ("", "login"):
        in_job.settings["SLURMD_NODENAME"] = name
        gone = in_job.launch("recipe.yaml", "run.steps=1")
        command, *left = gone.stdout.splitlines()
        assert command.startswith("srun --jobid=12 --overlap --nodes=1 --ntasks=1 "), gone.stderr
        assert command.endswith(f" --nodelist=node-1 {in_job.root}/launch.sh recipe.yaml run.steps=1")
        assert sorted(left) == ["SLURM_CONF=/etc/slurm.conf", "SLURM_JOB_NODELIST=node-[1-2]"]
        assert in_job.launch("recipe.yaml", "run.hostfile=hosts").stdout.startswith("ran: ")
        assert in_job.launch("plan", "recipe.yaml").stdout.startswith("ran: ")


def test_several_tasks_are_refused(in_job: Checkout) -> None:
    in_job.settings["SLURM_STEP_NUM_TASKS"] = "4"
    assert refused(in_job.launch("recipe.yaml"), "srun starts this 4 times")
    assert in_job.launch("test").returncode == 0


def test_without_slurms_commands_it_stays_on_a_node_and_says_so_elsewhere(in_job: Checkout) -> None:
    (in_job.bin / "scontrol").unlink()
    assert in_job.launch("recipe.yaml").stdout.startswith("ran: ")
    in_job.settings["SLURMD_NODENAME"] = ""
    assert refused(in_job.launch("recipe.yaml"), "scontrol does not say which nodes the SLURM job 12 has")
