from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rl.launch.addresses import interface_of, own_address
from rl.launch.greeting import Greeting, code_digest, greeting
from rl.paths import REPOSITORY


def made() -> Greeting:
    environment = {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "eth7", "PATH": "/bin", "HF_TOKEN": "secret"}
    environment |= {
        "JUDGE_KEY": "k",
        "https_proxy": "http://p",
        "SSH_TTY": "/dev/pts/1",
        "SLUICE_VENV": "/v",
        "PWD": "/",
    }
    return greeting("10.0.0.1:6379", "token", "12345678", environment)


def test_a_greeting_arrives_with_the_variables_that_every_machine_should_have() -> None:
    said = made()
    passed = {"NCCL_DEBUG": "INFO", "HF_TOKEN": "secret", "JUDGE_KEY": "k", "https_proxy": "http://p"}
    assert said.environment == passed, "as srun does"
    assert Greeting.of_line(said.line()) == said and said.difference() is None


@pytest.mark.parametrize("line", [b"", b"hello\n", b"[]\n", b'{"address": "x"}\n', b"\xff\n"])
def test_what_is_no_greeting_is_told(line: bytes) -> None:
    with pytest.raises(ValueError, match="no greeting of a run"):
        Greeting.of_line(line)


def test_another_python_and_other_code_are_told() -> None:
    assert "Python" in str(replace(made(), python="3.9.1").difference())
    assert "the code or the locks" in str(replace(made(), code="0" * 16).difference())


def test_the_digest_is_of_code_and_locks_and_of_nothing_else(tmp_path: Path) -> None:
    for name in ("rl", "rollout", "rewards", "locks"):
        (tmp_path / name).mkdir()
    (tmp_path / "rl" / "a.py").write_text("a")
    first = code_digest(tmp_path)
    (tmp_path / "rl" / "notes.md").write_text("n")
    (tmp_path / "runs").mkdir()
    assert code_digest(tmp_path) == first
    (tmp_path / "rl" / "a.py").rename(tmp_path / "rl" / "b.py")
    renamed = code_digest(tmp_path)
    (tmp_path / "locks" / "cpu.txt").write_text("x==1")
    assert len({first, renamed, code_digest(tmp_path)}) == 3


def test_loopback_is_reached_from_loopback() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1" and interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None
    with pytest.raises(OSError):
        own_address("no-such-host.invalid")


@pytest.mark.slow
def test_the_verb_refuses_what_it_cannot_join() -> None:
    def said(line: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "rl.cli", "node"], input=line, cwd=REPOSITORY, capture_output=True, timeout=60
        )

    empty = said(b"")
    assert empty.returncode == 2 and b"a run with run.hostfile or in a SLURM job starts this verb" in empty.stderr
    other = said(replace(made(), code="0" * 16).line())
    assert other.returncode == 2 and b"the code or the locks" in other.stderr
    assert os.environ.get("RAY_AUTH_TOKEN") is None
