"""A shell that lives: what stays between commands, what ends it, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable

import pytest

from rewards.errors import InfrastructureError
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Command, Outcome, Sandbox
from tests.rewards.sandbox.test_sandbox import processes_naming

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LIMITS = SandboxConfig(wall_s=20.0, output_kb=16)
Ask = Callable[[str], Awaitable[Command]]


def talk(*commands: str, config: SandboxConfig = LIMITS) -> list[Command]:
    async def conversation() -> list[Command]:
        sandbox = Sandbox(config)
        async with sandbox.shell() as shell:
            return [await sandbox.command(shell, command) for command in commands]

    return asyncio.run(conversation())


def test_directories_variables_and_background_processes_stay() -> None:
    *_, last = talk(
        "mkdir -p a/b && cd a/b && export X=7",
        "sleep 600 &",
        "f() { echo hi $1; }",
        "f $X; pwd; jobs | wc -l; echo err >&2",
    )
    assert (last.outcome, last.exit_code) == (Outcome.OK, 0)
    assert last.output == "hi 7\n/tmp/a/b\n1\nerr\n"


@pytest.mark.parametrize(
    ("command", "outcome", "code", "output"),
    [
        ("false", Outcome.FAILED, 1, ""),
        ("echo -n x; exit_code() { return 5; }; exit_code", Outcome.FAILED, 5, "x"),
        ("if true; then", Outcome.FAILED, 2, None),
        ("echo 'unbalanced", Outcome.FAILED, 2, None),
        ("cat; echo done", Outcome.OK, 0, "done\n"),
        ("read x; echo [$x]", Outcome.OK, 0, "[]\n"),
        ("echo $'a\\nb' 'ü'", Outcome.OK, 0, "a\nb ü\n"),
        ("no-such-program", Outcome.FAILED, 127, None),
        ("kill -9 $BASHPID &", Outcome.OK, 0, None),
        ("python3 -c 'print(6*7)'", Outcome.OK, 0, "42\n"),
    ],
)
def test_a_command_ends_as_it_ends(command: str, outcome: Outcome, code: int, output: str | None) -> None:
    found, after = talk(command, "echo still here")
    assert (found.outcome, found.exit_code) == (outcome, code), found
    assert output is None or found.output == output
    of_jobs = "bash: line"  # bash tells of a killed job before the output of a later command, or after it
    assert [line for line in after.output.splitlines() if not line.startswith(of_jobs)] == ["still here"]


def test_what_ends_the_shell_is_told_and_nothing_runs_after_it() -> None:
    ended, after = talk("echo bye; exit 3", "echo again")
    assert (ended.outcome, ended.exit_code, ended.output) == (Outcome.FAILED, None, "bye\n")
    assert (after.outcome, after.output) == (Outcome.FAILED, "the shell has ended")
    assert talk("exec true")[0].exit_code is None


def test_limits_hold_for_each_command_and_for_the_shell() -> None:
    (slow,) = talk("echo begun; sleep 60", config=LIMITS.model_copy(update={"wall_s": 1.0}))
    assert (slow.outcome, slow.output) == (Outcome.TIMEOUT, "begun\n")
    (loud,) = talk("yes")
    assert loud.outcome is Outcome.OUTPUT_LIMIT and len(loud.output) == LIMITS.output_kb * 1024
    (busy,) = talk("python3 -c 'while True: pass'", config=LIMITS.model_copy(update={"cpu_s": 1}))
    assert busy.exit_code == 128 + 24
    (many,) = talk("for i in $(seq 100); do sleep 60 & done", config=LIMITS.model_copy(update={"processes": 8}))
    assert "fork" in many.output


def test_it_shares_a_workspace_with_programs() -> None:
    async def check() -> None:
        sandbox = Sandbox(LIMITS)
        async with sandbox.workspace() as workspace:
            await sandbox.run("open('x', 'w').write('from a program')", workspace=workspace)
            async with sandbox.shell(workspace) as shell:
                assert (await sandbox.command(shell, "cat x; echo more >> x")).output == "from a program"
            assert (
                await sandbox.run("print(open('x').read())", workspace=workspace)
            ).stdout == "from a programmore\n\n"

    asyncio.run(check())


def test_nothing_is_left_of_it() -> None:
    marker = uuid.uuid4().hex
    before = len(os.listdir("/proc/self/fd"))
    talk(f"nohup setsid bash -c 'exec -a {marker} sleep 600' & sleep 0.3")
    assert processes_naming(marker) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 4, "the event loop's own"


def test_a_shell_that_closes_its_output_has_ended() -> None:
    found, after = talk("exec >&- 2>&-; sleep 600", "echo again", config=LIMITS.model_copy(update={"wall_s": 5.0}))
    assert found.exit_code is None and after.output == "the shell has ended"


def test_a_shell_does_not_forge_the_end_of_a_command() -> None:
    trick = "printf() { builtin printf '\\n%s:9999999\\n' $2; }"
    _, found = talk(trick, "echo x; (exit 4)")
    assert found.exit_code == 4 and found.output.endswith("x\n"), found


def test_what_comes_after_a_deadline_is_told_to_nobody() -> None:
    slow, after = talk("sleep 1.5; echo late", "echo b", config=LIMITS.model_copy(update={"wall_s": 0.5}))
    assert slow.outcome is Outcome.TIMEOUT and after.output == "the shell has ended"


def test_commands_take_turns() -> None:
    async def both() -> list[Command]:
        sandbox = Sandbox(LIMITS)
        async with sandbox.shell() as shell:
            return await asyncio.gather(*(sandbox.command(shell, f"sleep 0.2; echo {name}") for name in "ab"))

    assert [found.output for found in asyncio.run(both())] == ["a\n", "b\n"]


def test_a_shell_that_cannot_start_is_an_infrastructure_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InfrastructureError, match="bwrap"):
        talk("echo hi")
