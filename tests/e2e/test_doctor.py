"""`doctor RECIPE` on one machine, and on two of namespaces through a hostfile: what fits, and what does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from tests.e2e.harness import QUICKSTART
from tests.e2e.hosts import Machine, machines, run_on, ssh_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DEADLINE_S = 300
LIMIT = "limit_s=200"
"""More than by default, since other tests may take the cores."""
NAMES = {
    *("machines", "hardware", "code", "packages", "interface", "addresses", "gpu memory", "memory", "limits"),
    *("sandbox", "run.dir", "pairs", "clocks", "all-reduce"),
}


def lines(output: str) -> dict[str, tuple[str, str]]:
    """By name whether a line is ok or FAIL, and its text."""
    found = [line for line in output.splitlines() if line.startswith(("ok ", "FAIL "))]
    return {line[6:18].strip(): (line[:4].strip(), line[19:]) for line in found}


def on_two(made: list[Machine], environment: dict[str, str], *overrides: str) -> tuple[int, dict[str, tuple[str, str]]]:
    folder = made[0].folder
    (folder / "hosts").write_text(f"{made[1].address}\n")
    words = [
        "./launch.sh",
        "doctor",
        QUICKSTART,
        LIMIT,
        f"run.hostfile={folder}/hosts",
        f"run.ssh={ssh_command(folder)}",
    ]
    done = run_on(
        made[0], [*words, *overrides], os.environ | {"SLUICE_VENV": sys.prefix} | environment, REPOSITORY, DEADLINE_S
    )
    found = lines(done.stdout)
    assert found, done.stdout[-3000:]
    return done.returncode, found


def test_this_machine_fits_and_nothing_is_left(tmp_path: Path) -> None:
    command = ["./launch.sh", "doctor", QUICKSTART, LIMIT, f"run.dir={tmp_path}/run"]
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    found = lines(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.keys() == NAMES and {state for state, _ in found.values()} == {"ok"}
    assert found["all-reduce"][1] == "gloo, 2 ranks on 1 machine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make machines of namespaces")
@pytest.mark.skipif(
    not all(shutil.which(name) or Path(f"/usr/sbin/{name}").exists() for name in ("sshd", "ssh", "ip")),
    reason="an ssh server is missing; install it, e.g. apt-get install openssh-server openssh-client iproute2",
)
def test_two_machines_fit_unless_the_folder_is_not_shared_or_the_interface_is_another() -> None:
    with machines(2) as made:
        code, found = on_two(made, {}, f"run.dir={made[0].folder}/run")
        assert code == 0, found
        assert found.keys() == NAMES and {state for state, _ in found.values()} == {"ok"}
        assert found["interface"][1] == "10.77.0.1 over eth0; 10.77.0.2 over eth0"
        assert found["pairs"][1].startswith("2 ways between 2 machines")
        assert found["all-reduce"][1] == "gloo, 2 ranks on 2 machines"
        assert not (made[0].folder / "run").exists() and not list(made[0].folder.glob(".sluice*"))

        code, found = on_two(made, {"NCCL_SOCKET_IFNAME": "wlan"}, "run.dir=/tmp/run")
        assert code == 1
        assert {name for name, (state, _) in found.items() if state == "FAIL"} == {"interface", "run.dir"}
        assert "10.77.0.1 has NCCL_SOCKET_IFNAME=wlan, and eth0 is what leads to the others" in found["interface"][1]
        assert "10.77.0.2 does not see /tmp as it is here" in found["run.dir"][1]
        assert "set run.dir to a path that all machines of the run share" in found["run.dir"][1]

        gone = [made[0], Machine(9, made[0].prefix, made[0].folder)]
        code, found = on_two(gone, {}, "run.host_address=10.77.0.1", f"run.dir={made[0].folder}/run")
        assert code == 1 and found.keys() == {"machines"}
        assert "10.77.0.9: ssh: connect to host 10.77.0.9" in found["machines"][1]
