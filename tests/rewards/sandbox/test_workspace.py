# ruff: noqa: E501 (programs, as they are written)
"""A folder for several executions: files stay and are the programs' own, processes end, and nothing is left of it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Execution, Outcome, Sandbox
from rewards.sandbox.users import users

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LIMITS = SandboxConfig(wall_s=20.0, file_mb=64, workspace_mb=32)


def run_all(*codes: str, prepared: Path | None = None) -> list[Execution]:
    async def several() -> list[Execution]:
        sandbox = Sandbox(LIMITS)
        async with sandbox.workspace(prepared) as workspace:
            return [await sandbox.run(code, workspace=workspace) for code in codes]

    return asyncio.run(several())


def left() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("sluice-workspace-")]


def test_files_stay_and_processes_do_not() -> None:
    first, second, third = run_all(
        "import os, time\nopen('a.txt', 'w').write('hi'); os.mkdir('d')\nif os.fork() == 0: time.sleep(600)",
        "import os\nprint(open('a.txt').read(), sorted(os.listdir('.')), os.getcwd(), [p for p in os.listdir('/proc') if p.isdigit()])",
        "import os\nos.remove('a.txt'); os.rename('d', 'e'); os.chmod('e', 0); print(os.stat('e').st_uid == os.getuid())",
    )
    assert first.outcome is Outcome.OK
    assert second.stdout == "hi ['a.txt', 'd'] /tmp ['1', '2']\n", second
    assert third.stdout == "True\n", third
    assert left() == []


def test_a_program_finds_modules_of_its_workspace_and_itself() -> None:
    _, second = run_all(
        "open('mine.py', 'w').write('X = 3')",
        "import sys; sys.path.insert(0, '.')\nimport mine, inspect\nprint(mine.X, __file__)\nraise KeyError",
    )
    assert second.stdout == "3 /dev/shm/main.py\n" and "raise KeyError" in second.stderr


def test_a_prepared_folder_is_copied_for_each(tmp_path: Path) -> None:
    (tmp_path / "repo" / "deep").mkdir(parents=True)
    (tmp_path / "repo" / "deep" / "file").write_text("original")
    os.symlink("deep/file", tmp_path / "repo" / "link")
    code = "print(open('repo/link').read())\nopen('repo/deep/file', 'w').write('changed')"
    for _ in range(2):
        (execution,) = run_all(code, prepared=tmp_path)
        assert execution.stdout == "original\n", execution
    assert (tmp_path / "repo" / "deep" / "file").read_text() == "original"


@pytest.mark.parametrize("overlaid", [True, False])
def test_many_begin_from_a_folder_that_is_prepared_once(
    tmp_path: Path, overlaid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not overlaid:
        monkeypatch.setattr("rewards.sandbox.workspace.OVERLAY", ("false",))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"o" * (4 << 20))
    (tmp_path / "gone").write_text("x")

    async def members() -> None:
        sandbox = Sandbox(LIMITS)
        async with sandbox.prepared(tmp_path) as prepared:
            if overlaid and not prepared.overlaid:
                pytest.skip("no overlay can be mounted here")
            assert prepared.overlaid == overlaid
            async with sandbox.workspace(prepared) as one, sandbox.workspace(prepared) as other:
                change = (
                    "import os\nopen('deep/file', 'r+').write('new'); os.remove('gone'); open('made', 'w').write('m')"
                )
                assert (await sandbox.run(change, workspace=one)).outcome is Outcome.OK
                look = "import os\nprint(open('deep/file').read(3), sorted(os.listdir('.')), os.stat('deep').st_uid == os.getuid())"
                seen = [(await sandbox.run(look, workspace=each)).stdout for each in (one, other)]
                assert seen == ["new ['deep', 'made'] True\n", "ooo ['deep', 'gone'] True\n"], seen
                async with sandbox.shell(one) as shell:
                    assert (await sandbox.command(shell, "ls; head -c 3 deep/file")).output == "deep\nmade\nnew"
                holds = [sum(f.stat().st_size for f in each.path.rglob("*") if f.is_file()) for each in (one, other)]
                assert not overlaid or holds[1] == 0, "only what is changed is held"

    asyncio.run(members())
    assert left() == [] and (tmp_path / "gone").read_text() == "x"


def test_a_full_workspace_is_told_and_ends_what_fills_it() -> None:
    fill = "import time\nfor n in range(10):\n    open(str(n), 'wb').write(b'x' * (8 << 20)); time.sleep(0.3)\nprint('done')"
    (execution,) = run_all(fill)
    assert execution.outcome is Outcome.MEMORY and execution.stderr == "the workspace is full", execution


def test_files_without_a_name_count_too() -> None:
    fill = "import os, time\nheld = []\nfor n in range(10):\n    held.append(open('x', 'wb')); held[-1].write(b'x' * (8 << 20)); held[-1].flush()\n    os.unlink('x'); time.sleep(0.3)\nprint('done')"
    (execution,) = run_all(fill)
    assert execution.outcome is Outcome.MEMORY, execution


def test_workspaces_and_executions_have_different_users() -> None:
    async def numbers() -> list[str]:
        one, other = Sandbox(LIMITS), Sandbox(LIMITS)
        ask = "import os; print(os.getuid())"
        async with one.workspace() as first, other.workspace() as second:
            runs = [one.run(ask, workspace=first), other.run(ask, workspace=second), one.run(ask), other.run(ask)]
            return [execution.stdout for execution in await asyncio.gather(*runs)]

    if users().range is None:
        pytest.skip("an ordinary user has one number only")
    assert len(set(asyncio.run(numbers()))) == 4


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')",
        "import os\nos.mkdir('d'); open('d/f', 'w'); os.chmod('d', 0); os.chmod('.', 0)",
        "import os\nos.symlink('/', 'root'); os.symlink('..', 'up'); os.mkfifo('pipe'); open('-rf', 'w'); open('a\\nb', 'w')",
        "import socket\nsocket.socket(socket.AF_UNIX).bind('s')",
    ],
)
def test_it_is_removed_whatever_is_in_it(code: str) -> None:
    executions = run_all(code, "print(1)")
    assert [execution.outcome for execution in executions] == [Outcome.OK] * 2, executions
    assert left() == []


def test_a_link_leads_nowhere_on_the_host(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    code = f"import os\nos.symlink({str(secret)!r}, 'link')\nprint(os.path.exists('link'))"
    (execution,) = run_all(code)
    assert execution.stdout == "False\n" and secret.read_text() == "s"


def test_without_the_folder_to_copy_it_is_an_error() -> None:
    with pytest.raises(OSError, match="cp: "):
        run_all("", prepared=Path("/nowhere"))
    assert left() == []


def test_without_isolation_a_prepared_folder_is_copied(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("f")

    async def look() -> str:
        sandbox = Sandbox(LIMITS.model_copy(update={"kind": "unsafe-none"}))
        async with sandbox.prepared(tmp_path) as prepared, sandbox.workspace(prepared) as workspace:
            return (await sandbox.run("print(open('file').read())", workspace=workspace)).stdout

    assert asyncio.run(look()) == "f\n" and left() == []
