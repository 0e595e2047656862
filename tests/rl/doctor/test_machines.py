"""Checks of machines: this one's real facts, and the same with one thing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rl.doctor import folder, machines
from rl.doctor.facts import Facts, gather
from tests.support import program

HERE = gather("127.0.0.1", [], ["pytest", "pydantic", "no-such-package"], None)
ROUTED = replace(HERE, variables={}, routes={"b": "eth0"}, interfaces=("eth0", "eth1", "lo"))


def pair(second: Facts, first: Facts = ROUTED) -> dict[str, Facts]:
    return {"a": first, "b": replace(second, routes={"a": next(iter(second.routes.values()), "eth0")})}


def test_the_facts_of_this_machine_are_fine() -> None:
    found = {"127.0.0.1": HERE}
    assert HERE.binds is None and "lo" in HERE.interfaces and HERE.packages["no-such-package"] == "missing"
    assert gather("127.0.0.1", ["127.0.0.1", "no-such-host.invalid"], [], None).routes == {
        "127.0.0.1": "lo",
        "no-such-host.invalid": None,
    }
    for check in (machines.code, machines.packages, machines.addresses):
        assert check(found).fine
    assert gather("203.0.113.77", [], [], None).binds is not None


def test_the_machine_that_differs_is_named_with_what_differs() -> None:
    other = machines.code(pair(replace(ROUTED, code="0" * 16)))
    assert not other.fine and "b has code 0000000000000000" in other.text and ROUTED.code in other.text
    python = machines.code(pair(replace(ROUTED, python="3.9.1")))
    assert "b has Python 3.9.1" in python.text
    packages = machines.packages(pair(replace(ROUTED, packages=dict(ROUTED.packages) | {"pytest": "1.0"})))
    assert not packages.fine and f"b has pytest 1.0 instead of {ROUTED.packages['pytest']}" in packages.text
    assert machines.packages(pair(ROUTED)).fine


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        *(("eth0", True), ("eth", True), ("=eth0", True), ("^eth1", True), ("^lo,docker", True), ("^=eth1", True)),
        *(("eth1", False), ("=eth", False), ("^eth", False), ("^=eth0", False), ("ib0", False)),
    ],
)
def test_nccl_takes_the_beginnings_of_names(value: str, fine: bool) -> None:
    found = machines.interface(pair(replace(ROUTED, variables={"NCCL_SOCKET_IFNAME": value})))
    assert found.fine == fine
    assert fine or ("unset it, or set it to eth0" in found.text and f"b has NCCL_SOCKET_IFNAME={value}" in found.text)


@pytest.mark.parametrize(("value", "fine"), [("eth0", True), ("eth", False), ("eth1", False), ("eth0,eth1", True)])
def test_gloo_takes_names(value: str, fine: bool) -> None:
    assert machines.interface(pair(replace(ROUTED, variables={"GLOO_SOCKET_IFNAME": value}))).fine == fine


def test_on_one_machine_the_interface_only_has_to_exist() -> None:
    for value, fine in (("lo", True), ("no-such", False)):
        alone = {"127.0.0.1": replace(HERE, variables={"NCCL_SOCKET_IFNAME": value})}
        assert machines.interface(alone).fine == fine


def test_a_machine_without_a_route_is_named() -> None:
    found = machines.interface(pair(replace(ROUTED, routes={"a": None})))
    assert not found.fine and "b has no route to a" in found.text


def test_addresses_of_two_families_and_of_a_link_are_refused_and_a_trapped_name_is_told() -> None:
    assert "one family" in machines.addresses({"10.0.0.1": HERE, "fd00::2": HERE}).text
    link = machines.addresses({"fe80::1": HERE, "fe80::2": HERE})
    assert not link.fine and "run.host_address" in link.text
    trapped = machines.addresses({"10.0.0.1": replace(HERE, names=("127.0.1.1",)), "10.0.0.2": HERE})
    assert trapped.fine and "10.0.0.1 calls itself" in trapped.text and "127.0.1.1" in trapped.text
    assert not machines.addresses({"10.0.0.1": replace(HERE, binds="Cannot assign requested address")}).fine


def test_a_gpu_that_another_program_fills_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "#!/bin/sh\necho '143000, 143771'\necho '20000, 143771'\n", monkeypatch)
    found = {"a": gather("127.0.0.1", [], [], None)}
    assert found["a"].gpus == ((143000 * 2**20, 143771 * 2**20), (20000 * 2**20, 143771 * 2**20))
    assert machines.gpus(found, {"a": 1}, "cuda").fine
    full = machines.gpus(found, {"a": 2}, "cuda")
    assert not full.fine and "a: 1 of 2 GPUs are free, and 2 are the run's; the fullest has 21.0 GB left" in full.text
    assert machines.gpus(found, {}, "cpu").text == "the run uses no GPU"


def test_too_little_memory_and_low_limits_are_told_with_the_fix() -> None:
    store = 10**8
    assert machines.memory({"a": replace(HERE, memory=10**11, shared_memory=10**9)}, store).fine
    assert "end other programs" in machines.memory({"a": replace(HERE, memory=10**9)}, store).text
    assert "--shm-size" in machines.memory({"a": replace(HERE, memory=10**11, shared_memory=64 << 20)}, store).text
    low = machines.limits({"a": replace(HERE, files=1024, processes=-1)}, "cpu")
    assert not low.fine and "a allows 1024 open files" in low.text and "ulimit -n" in low.text
    locked = replace(HERE, files=-1, processes=-1, infiniband=True, locked=65536)
    assert not machines.limits({"a": locked}, "cuda").fine and machines.limits({"a": locked}, "cpu").fine
    assert "a: bwrap" in machines.sandbox({"a": replace(HERE, sandbox="bwrap is missing")}, True).text


def test_a_shared_folder_is_seen_and_locked_and_gone_afterwards(tmp_path: Path) -> None:
    parent = folder.parent_of(str(tmp_path / "not" / "yet"))
    assert parent == tmp_path
    with folder.marked(parent, "12345678") as marked:
        seen = {"a": folder.look(marked, "12345678", "a")}
        assert seen["a"].alien is None and seen["a"].locks and seen["a"].free > 0
        assert folder.judge(parent, marked, seen).fine
        blind = folder.judge(parent, marked, {"a": replace(seen["a"], locks=False)})
        assert blind.fine and "a sees no lock" in blind.text
        unseen = folder.judge(parent, marked, seen | {"b": seen["a"]})
        assert not unseen.fine and "what b writes" in unseen.text
        full = folder.judge(parent, marked, {"a": replace(seen["a"], free=10)})
        assert not full.fine and "0.0 GB free" in full.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_machine_is_told(tmp_path: Path) -> None:
    assert folder.look(tmp_path / "absent", "12345678", "b").alien == "No such file or directory"
    with folder.marked(tmp_path, "12345678") as marked:
        found = folder.judge(tmp_path, marked, {"b": folder.look(marked, "87654321", "b")})
    assert not found.fine and "b does not see" in found.text and "set run.dir to a path" in found.text
