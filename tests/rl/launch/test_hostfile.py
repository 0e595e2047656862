from __future__ import annotations

from pathlib import Path

import pytest

from rl.launch.hostfile import read_hostfile


def written(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text)
    return path


def test_hosts_come_in_their_order_without_comments_and_slots(tmp_path: Path) -> None:
    text = "\ufeff# the rack\n\nnode-2 slots=8\nuser@node-3   # slow\n  fe80::1\n"
    assert read_hostfile(written(tmp_path, text)) == ["node-2", "user@node-3", "fe80::1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no host"),
        ("# node-2\n", "names no host"),
        ("node-2\nnode-2\n", r"hosts:2: node-2 is there already"),
        ("node-2 8\n", r"hosts:1: 'node-2 8' is no line of a hostfile"),
        ("-oProxyCommand=evil\n", r"hosts:1: .* is no line of a hostfile"),
        ("node-2 slots=many\n", "no line of a hostfile"),
        ("node-2\nroot@node-2\n", "2: root@node-2 is there already"),
        ("node-2:2222\n", "the port into run.ssh"),
        ("ssh://root@node-2:22\n", "the port into run.ssh"),
        ("node-[1-3]\n", "no line of a hostfile"),
    ],
)
def test_a_bad_line_is_told_with_its_number(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        read_hostfile(written(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run.hostfile=.*/nowhere cannot be read: No such file"):
        read_hostfile(tmp_path / "nowhere")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError, match="cannot be read"):
        read_hostfile(tmp_path / "bytes")
