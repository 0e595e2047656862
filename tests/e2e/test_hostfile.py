"""A run over several machines through a hostfile: real sshd, a real Ray cluster, and nothing left on any of them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from tests.e2e.harness import COLD_START, DEADLINE_S, ONE_RANK, QUICKSTART, SHORT, Run
from tests.e2e.hosts import IPV6, Machine, machines, run_on, ssh_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.hosts,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make machines of namespaces"),
    pytest.mark.skipif(
        not all(shutil.which(name) or Path(f"/usr/sbin/{name}").exists() for name in ("sshd", "ssh", "ip")),
        reason="an ssh server is missing; install it, e.g. apt-get install openssh-server openssh-client iproute2",
    ),
]


@pytest.fixture(scope="module")
def two() -> Iterator[list[Machine]]:
    with machines(2) as made:
        yield made


def start(made: list[Machine], name: str, *overrides: str) -> Run:
    folder = made[0].folder
    hostfile = folder / "hosts"
    hostfile.write_text("".join(f"{machine.address}  # slots are asked of it\n" for machine in made[1:]))
    directory = folder / name
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    words = [
        "./launch.sh",
        QUICKSTART,
        f"run.dir={directory}",
        f"run.hostfile={hostfile}",
        f"run.ssh={ssh_command(folder)}",
    ]
    done = run_on(made[0], [*words, *overrides], environment, REPOSITORY, DEADLINE_S)
    return Run(code=done.returncode, output=done.stdout, directory=directory, leftovers=())


@pytest.fixture(scope="module")
def cache(two: list[Machine], cold_start_cache: Path) -> str:
    """The cold start, where both machines see it, as an override."""
    shared = two[0].folder / "cache"
    shutil.copytree(cold_start_cache, shared)
    return f"run.cache_dir={shared}"


def asked(machine: Machine, command: str) -> str:
    """What a command prints on a machine that answers to ssh."""
    words = [*shlex.split(ssh_command(machine.folder)), machine.address, command]
    where = ["ip", "netns", "exec", f"{machine.prefix}1"]
    return subprocess.run([*where, *words], capture_output=True, text=True, timeout=60, check=False).stdout


def received(machine: Machine) -> int:
    """The bytes that have come to a machine over its link."""
    counter = Path(f"/sys/class/net/{machine.prefix}v{machine.number}/statistics/tx_bytes")
    return int(counter.read_text())


LEFT = "pgrep -fc 'raylet|ray::|launch.sh' ; ls /dev/shm ; ls -d /tmp/sluice-* 2>/dev/null"
"""On a machine without anything of a run it prints a count of the shell itself, and nothing else."""


def nothing_left(machine: Machine) -> bool:
    return len(asked(machine, LEFT).split()) == 1 and int(asked(machine, "pgrep -fc '[r]aylet|[r]ay::'") or 0) == 0


REACH = "(exec 3<>/dev/tcp/127.0.0.1/8123) && echo reached"
QUIET = "</dev/null >/dev/null 2>&1 &"
ABSTRACT = """python3 -c "import socket; socket.socket(socket.AF_UNIX).connect('\\0sluice-test'); print('abstract')" """
LISTEN = """python3 -c "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('\\0sluice-test'); s.listen();
time.sleep(60)" """


def test_machines_do_not_see_each_other(two: list[Machine]) -> None:
    first, second = two
    asked(second, "touch /tmp/mine /dev/shm/mine ~/mine")
    asked(second, f"setsid sleep 54321 {QUIET} setsid python3 -m http.server 8123 --bind 127.0.0.1 {QUIET} sleep 2")
    asked(second, f"setsid {LISTEN} {QUIET} sleep 1")
    try:
        assert "reached" in asked(second, f"bash -c '{REACH}'") and "abstract" in asked(second, ABSTRACT)
        look = f"ls /tmp /dev/shm ~; echo seen $(pgrep -fc 'sleep 5432[1]'); {REACH}; {ABSTRACT}; true"
        looked = run_on(first, ["bash", "-c", look], dict(os.environ), REPOSITORY, 30).stdout
        assert "mine" not in looked and "reached" not in looked and "seen 0" in looked, looked
        assert "abstract\n" not in looked and "refused" in looked, looked
    finally:
        asked(second, "pkill -f 'sleep 5432[1]|sluice-tes[t]|http.serve[r]'; rm /tmp/mine /dev/shm/mine ~/mine")


def until_a_step_is_done(directory: Path, going: Future[Run]) -> None:
    metrics = directory / "metrics.jsonl"
    end = time.monotonic() + 400
    while not metrics.exists() or '"time/step_s"' not in metrics.read_text():
        assert time.monotonic() < end and not going.done(), going.result().output[-3000:] if going.done() else ""
        time.sleep(0.3)


def test_a_run_uses_the_workers_of_both_machines(two: list[Machine], cache: str) -> None:
    before = received(two[1])
    run = start(two, "run", COLD_START, *SHORT, *ONE_RANK, "rollout.workers=2", cache)
    assert run.code == 0, run.output[-4000:]
    timeline = (run.directory / "timeline.jsonl").read_text()
    pushed = sum(int(found.replace(",", "")) for found in re.findall(r"([\d,]+) bytes; engines", timeline))
    assert pushed > 10 * 2**20
    assert pushed <= received(two[1]) - before <= 1.15 * pushed, "all weights go over the link once, and little else"
    placed = {line.split()[0]: line for line in run.output.splitlines() if line.strip().startswith("10.77.0.")}
    assert placed["10.77.0.1"].split()[1:] == ["driver,", "buffer,", "trainer-0,", "worker-0"]
    assert placed["10.77.0.2"].split()[1:] == ["engine-0,", "worker-1"]
    assert run.summary["steps"] == 2 and run.summary["trained_tokens"] > 0
    assert run.summary["mismatch_logprob_abs_mean"] < 1e-5
    assert nothing_left(two[1]), asked(two[1], LEFT)


@pytest.mark.long
def test_four_machines_have_two_engines_and_a_worker_each() -> None:
    with machines(4) as four:
        before = [received(machine) for machine in four]
        many = ("rollout.workers=4", "inference.replicas=2", "weight_sync.verify_every=1", "sft.steps=10")
        run = start(four, "run", COLD_START, *SHORT, *ONE_RANK, *many)
        assert run.code == 0, run.output[-4000:]
        placed = {line.split()[0]: line.split()[1:] for line in run.output.splitlines() if "10.77.0." in line[:20]}
        assert placed["10.77.0.1"] == ["driver,", "buffer,", "trainer-0,", "worker-0"]
        assert placed["10.77.0.2"] == ["engine-0,", "worker-1"] and placed["10.77.0.3"] == ["engine-1,", "worker-2"]
        assert placed["10.77.0.4"] == ["worker-3"]
        assert set(run.column("policy/verified_engines")) == {2.0}
        assert run.summary["steps"] == 2 and min(run.column("policy/read_back_tensors")) > 50
        timeline = (run.directory / "timeline.jsonl").read_text()
        pushed = sum(int(found.replace(",", "")) for found in re.findall(r"([\d,]+) bytes; engines", timeline))
        came = [received(machine) - old for machine, old in zip(four, before, strict=True)]
        assert came[3] < 0.5 * pushed < pushed <= min(came[1:3]), "no weights go where no engine is"
        for machine in four[1:]:
            assert nothing_left(machine), asked(machine, LEFT)


@pytest.mark.long
def test_an_engine_that_dies_on_another_machine_comes_back_there(two: list[Machine], cache: str) -> None:
    first, second = two
    with ThreadPoolExecutor(1) as background:
        asked_for = (COLD_START, *ONE_RANK, "rollout.workers=2", "tasks.eval_size=8", "run.steps=6", cache)
        going = background.submit(start, two, "back", *asked_for)
        until_a_step_is_done(first.folder / "back", going)
        asked(second, "pkill -KILL -f 'ray::InferenceActo[r]'")
        run = going.result()
    assert run.code == 0 and "engine-0 serves from now on, with version" in run.output, run.output[-3000:]
    assert max(run.column("policy/engines_restarted")) == 1 and run.summary["steps"] == 6
    assert run.summary["mismatch_logprob_abs_mean"] < 1e-5
    assert nothing_left(second), asked(second, LEFT)


@pytest.mark.long
def test_a_machine_that_is_cut_off_is_named_and_the_run_goes_on_from_its_checkpoint(
    two: list[Machine], cache: str
) -> None:
    first, second = two
    asked_for = (COLD_START, *ONE_RANK, "rollout.workers=2", "tasks.eval_size=8", "checkpoint.every=1", cache)
    link = ["ip", "link", "set", f"{second.prefix}v{second.number}"]
    with ThreadPoolExecutor(1) as background:
        going = background.submit(start, two, "cut", "run.steps=200", *asked_for)
        until_a_step_is_done(first.folder / "cut", going)
        subprocess.run([*link, "down"], check=True)
        try:
            run = going.result()
        finally:
            subprocess.run([*link, "up"], check=True)
    assert run.code == 1 and "10.77.0.2" in run.output, run.output[-3000:]
    steps = run.summary["steps"]
    end = time.monotonic() + 120
    while not nothing_left(second):
        assert time.monotonic() < end, asked(second, LEFT)
        time.sleep(1)
    again = start(two, "cut", f"run.steps={steps + 1}", *asked_for, "resume=must")
    assert again.code == 0 and again.summary["steps"] == steps + 1, again.output[-3000:]


@pytest.mark.long
def test_a_pair_without_ipv4_runs_as_well() -> None:
    with machines(2, IPV6) as pair:
        run = start(pair, "run", COLD_START, *SHORT, *ONE_RANK, "rollout.workers=2", "sft.steps=10", "eval.every=0")
        assert run.code == 0, run.output[-4000:]
        assert re.search(r"fd77::2 +engine-0, worker-1", run.output)
        assert run.summary["steps"] == 2
        assert nothing_left(pair[1]), asked(pair[1], LEFT)


def test_a_machine_that_does_not_answer_is_named_and_nothing_is_started(two: list[Machine]) -> None:
    gone = Machine(9, two[0].prefix, two[0].folder)
    run = start([two[0], gone], "gone", "run.host_address=10.77.0.1", *SHORT, *ONE_RANK)
    assert run.code == 2, run.output[-2000:]
    assert "a machine of run.hostfile did not join: 10.77.0.9: ssh: connect to host 10.77.0.9" in run.output
    assert not run.directory.exists()
