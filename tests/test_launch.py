"""launch.sh in a bare checkout whose `python3.11` is a small script: what it refuses, what it builds, and how often.

The script answers as Python would and writes down what it was asked, so nothing is downloaded. CI does the real build
in every fresh clone, before these tests run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rl.recipe.machine import ENVIRONMENT_GB, SUPPORTED_PYTHONS

TOOLS = (
    *("awk", "bash", "cat", "cp", "df", "dirname", "find", "flock", "git", "grep"),
    *("id", "mkdir", "mv", "rm", "sha256sum", "sleep", "tail", "uname", "wc"),
)

PYTHON = """\
#!/bin/sh
echo "$@" >>"$STUB_CALLS"
case "$*" in
    -V) echo "Python 3.11.9" ;;
    "-c import sys;"*) [ -z "${STUB_UNSUPPORTED:-}" ] && case "$*" in *"'3.11'"*) exit 0 ;; esac; exit 1 ;;
    "-c import venv"*) exit "${STUB_NO_VENV:-0}" ;;
    "-m venv "*)
        [ -z "${STUB_VENV_FAILS:-}" ] || exit 1
        mkdir -p "$3/bin" "$3/lib/python3.11/site-packages" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*" --dry-run "*) case "$*" in *"${STUB_NO_TORCH:-none}"*) exit 1 ;; esac ;;
    "-m pip install "*)
        echo "WARNING: Location 'an index' is ignored"
        [ -z "${STUB_PIP_ERROR:-}" ] || { echo "$STUB_PIP_ERROR"; exit 1; }
        exec sleep "${STUB_PIP_SECONDS:-0}" ;;
    "-P -m rl.cli "*)
        echo "ran: $* in $PWD with PYTHONPATH=$PYTHONPATH"
        echo "on: $0 SLUICE_DEVICE=$SLUICE_DEVICE CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-unset}"
        exec sleep "${STUB_RUN_SECONDS:-0}" ;;
esac
"""
GPU = "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n"


@dataclass
class Checkout:
    """A copy of what launch.sh needs, and a PATH that holds nothing but the tools and the stubs given."""

    root: Path
    bin: Path
    calls: Path
    settings: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {"PATH": str(self.bin), "STUB_CALLS": str(self.calls), **self.settings}

    def launch(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "launch.sh", *arguments],
            cwd=cwd or self.root,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stub(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)

    def installs(self) -> list[str]:
        """The calls of pip that install a whole lock. torch.txt does not count."""
        return [call for call in self.pip_calls() if " -r " in call and "torch.txt" not in call]

    def pip_calls(self) -> list[str]:
        calls = self.calls.read_text(encoding="utf-8").splitlines() if self.calls.exists() else []
        return [call for call in calls if call.startswith("-m pip install")]

    @property
    def venv(self) -> Path:
        return self.root / ".venv"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root, binaries = tmp_path / "checkout", tmp_path / "bin"
    for folder in (root / "rl", root / "locks", binaries):
        folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "launch.sh", root)
    shutil.copy(REPOSITORY / "rl" / "help.txt", root / "rl")
    (root / "locks" / "cpu.txt").write_text("# made by\nruff==0.1\n", encoding="utf-8")
    (root / "locks" / "torch.txt").write_text("# made by\nnvidia-cublas==13.1\ntorch==2.13.0\n", encoding="utf-8")
    (root / "locks" / "gpu.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    (root / "recipe.yaml").write_text("model: x\n", encoding="utf-8")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"this machine lacks {tool}"
        (binaries / tool).symlink_to(found)
    made = Checkout(root=root, bin=binaries, calls=tmp_path / "calls")
    made.stub("python3.11", PYTHON)
    made.stub("bwrap", "#!/bin/sh\n")
    return made


def refused(done: subprocess.CompletedProcess[str], words: str) -> bool:
    """Whether the exit code is 2 and the last line of stderr is an error message with these words."""
    *_, last = done.stderr.splitlines()
    return done.returncode == 2 and last.startswith("launch: error: ") and words in last


def test_help_needs_no_python_and_shows_every_verb(checkout: Checkout) -> None:
    (checkout.bin / "python3.11").unlink()
    for arguments in ([], ["--help"], ["-h"]):
        done = checkout.launch(*arguments)
        assert done.returncode == 0 and done.stdout == (REPOSITORY / "rl" / "help.txt").read_text(encoding="utf-8")
    assert not checkout.venv.exists()


def test_a_verb_asked_for_help_shows_the_page(checkout: Checkout) -> None:
    for verb in ("plan", "recipe.yaml", "doctor"):
        assert checkout.launch(verb, "--help").stdout == (REPOSITORY / "rl" / "help.txt").read_text(encoding="utf-8")
    assert not checkout.venv.exists()
    assert checkout.launch("test", "--help").stdout.startswith("ran: -P -m rl.cli test --help")


def test_the_first_start_builds_and_the_second_does_not(checkout: Checkout) -> None:
    first = checkout.launch("recipe.yaml", "run.steps=3")
    assert first.returncode == 0, first.stderr
    ran, on = first.stdout.splitlines()
    assert ran == f"ran: -P -m rl.cli recipe.yaml run.steps=3 in {checkout.root} with PYTHONPATH={checkout.root}"
    assert on == f"on: {checkout.venv}/bin/python SLUICE_DEVICE=cpu CUDA_VISIBLE_DEVICES="
    assert "about 5 minutes" in first.stderr and "WARNING" not in first.stderr
    assert checkout.launch("test", "-k", "x").returncode == 0
    (install,) = checkout.installs()
    assert install.startswith("-m pip install --no-deps ") and install.endswith("locks/cpu.txt")


def test_it_starts_from_any_directory(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: x\n", encoding="utf-8")
    done = checkout.launch("mine.yaml", cwd=tmp_path)
    assert done.stdout.startswith(f"ran: -P -m rl.cli mine.yaml in {tmp_path} ")


def test_a_changed_lock_builds_again(checkout: Checkout) -> None:
    checkout.launch("test")
    (checkout.root / "locks" / "cpu.txt").write_text("ruff==0.2\n", encoding="utf-8")
    assert checkout.launch("test").returncode == 0
    assert len(checkout.installs()) == 2


def test_an_interrupted_build_starts_from_nothing(checkout: Checkout) -> None:
    debris = checkout.venv / "lib" / "half-written"
    debris.mkdir(parents=True)
    assert checkout.launch("test").returncode == 0
    assert not debris.exists() and len(checkout.installs()) == 1


def test_an_environment_whose_interpreter_is_gone_is_built_again(checkout: Checkout) -> None:
    checkout.launch("test")
    interpreter = checkout.venv / "bin" / "python"
    interpreter.unlink()
    interpreter.symlink_to("/no/such/python3.11")
    assert checkout.launch("test").returncode == 0
    assert len(checkout.installs()) == 2


def test_no_build_takes_the_packages_of_a_run_away(checkout: Checkout) -> None:
    environment = checkout.environment() | {"STUB_RUN_SECONDS": "600"}
    command = [checkout.root / "launch.sh", "recipe.yaml"]
    with subprocess.Popen(
        command, cwd=checkout.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        try:
            assert run.stdout is not None and run.stdout.readline().startswith(b"ran: ")
            assert checkout.launch("recipe.yaml").returncode == 0, "runs share an environment"
            (checkout.root / "locks" / "cpu.txt").write_text("ruff==0.2\n", encoding="utf-8")
            assert refused(checkout.launch("recipe.yaml"), "a run that is still going uses it")
            assert len(checkout.installs()) == 1 and (checkout.venv / "bin" / "python").exists()
        finally:
            run.kill()
    assert checkout.launch("recipe.yaml").returncode == 0
    assert len(checkout.installs()) == 2


def test_two_starts_at_once_build_once(checkout: Checkout) -> None:
    checkout.settings["STUB_PIP_SECONDS"] = "2"
    command = [checkout.root / "launch.sh", "test"]
    starts = [subprocess.Popen(command, env=checkout.environment(), stderr=subprocess.PIPE) for _ in range(2)]
    said = b"".join(start.communicate(timeout=60)[1] for start in starts)
    assert [start.returncode for start in starts] == [0, 0]
    assert len(checkout.installs()) == 1 and b"another start is building" in said


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_build_and_pip_with_it(checkout: Checkout, sent: signal.Signals, code: int) -> None:
    checkout.settings["STUB_PIP_SECONDS"] = "600"
    start = subprocess.Popen(
        # A suite that a script starts in the background ignores SIGINT, and bash cannot trap a signal that it
        # inherits as ignored.
        ["/usr/bin/env", "--default-signal=INT", checkout.root / "launch.sh", "test"],
        env=checkout.environment(),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert start.stderr is not None
        while b"of 2 packages" not in (line := start.stderr.readline()):
            assert line, "launch.sh ended by itself"
        os.killpg(start.pid, sent)
        _, said = start.communicate(timeout=30)
        assert start.returncode == code and b"interrupted" in said
        with pytest.raises(ProcessLookupError):
            os.killpg(start.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(start.pid, signal.SIGKILL)
    del checkout.settings["STUB_PIP_SECONDS"]
    assert checkout.launch("test").returncode == 0


def test_a_failed_build_shows_pips_error_and_is_not_taken_for_finished(checkout: Checkout) -> None:
    checkout.settings["STUB_PIP_ERROR"] = "ERROR: no space left"
    done = checkout.launch("test")
    assert refused(done, "pip failed") and "ERROR: no space left" in done.stderr and "WARNING" not in done.stderr
    del checkout.settings["STUB_PIP_ERROR"]
    assert checkout.launch("test").returncode == 0


@pytest.mark.parametrize(
    ("setting", "says"),
    [("STUB_PIP_ERROR", ".venv.build/log"), ("STUB_VENV_FAILS", "could not make an environment")],
)
def test_a_failed_build_leaves_the_environment_that_was_there(checkout: Checkout, setting: str, says: str) -> None:
    checkout.launch("test")
    (checkout.venv / "mine").touch()
    lock = checkout.root / "locks" / "cpu.txt"
    before = lock.read_text(encoding="utf-8")
    lock.write_text("ruff==0.2\n", encoding="utf-8")
    checkout.settings[setting] = "ERROR: no network"
    assert refused(checkout.launch("test"), says)
    lock.write_text(before, encoding="utf-8")
    assert checkout.launch("test").returncode == 0 and (checkout.venv / "mine").exists()
    del checkout.settings[setting]
    lock.write_text("ruff==0.2\n", encoding="utf-8")
    assert checkout.launch("test").returncode == 0 and not (checkout.venv / "mine").exists()
    assert not checkout.venv.with_name(".venv.old").exists()


def test_torch_is_a_cpu_build_of_a_configured_source_where_there_is_one(checkout: Checkout) -> None:
    done = checkout.launch("test")
    assert "launch: torch==2.13.0+cpu is in a configured package source: 4 GB on disk in all" in done.stderr
    asked, torch, others = checkout.pip_calls()
    assert "--dry-run torch==2.13.0+cpu" in asked and torch.endswith(" off torch==2.13.0+cpu")
    assert "--index-url" not in torch and others.endswith("locks/cpu.txt") and "of 2 packages" in done.stderr


@pytest.mark.parametrize("index", ["https://download.pytorch.org/whl/cpu", "https://mirror.example/cpu"])
def test_else_it_comes_from_pytorchs_index_and_nothing_else_does(checkout: Checkout, index: str) -> None:
    checkout.settings["STUB_NO_TORCH"] = "--dry-run torch"  # matches the call without --index-url only
    if "mirror" in index:
        checkout.settings["SLUICE_TORCH_INDEX"] = index
    done = checkout.launch("test")
    assert f"torch==2.13.0+cpu comes from {index} (SLUICE_TORCH_INDEX names another): 4 GB" in done.stderr
    *_, torch, others = checkout.pip_calls()
    assert torch.endswith(f"--index-url {index} torch==2.13.0+cpu") and "--index-url" not in others


def test_else_it_is_the_ordinary_build_with_its_libraries(checkout: Checkout) -> None:
    checkout.settings["STUB_NO_TORCH"] = "torch==2.13.0+cpu"
    done = checkout.launch("test")
    assert done.returncode == 0 and "the ordinary build with its CUDA libraries, 7 GB on disk in all" in done.stderr
    *_, torch, others = checkout.pip_calls()
    assert torch.endswith("locks/torch.txt") and others.endswith("locks/cpu.txt") and "of 3 packages" in done.stderr


def test_the_ordinary_build_needs_more_disk_and_says_so_before_it_is_fetched(checkout: Checkout) -> None:
    checkout.settings["STUB_NO_TORCH"] = "torch==2.13.0+cpu"
    checkout.stub("df", "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 9 9 10485760\\n'\n")
    assert refused(checkout.launch("test"), "10 GB free in") and not checkout.venv.exists()
    assert all("--dry-run" in call for call in checkout.pip_calls())


@pytest.mark.parametrize(
    ("version", "device", "accepted"),
    [
        ("3.13", "cpu", True),
        ("3.14", "cpu", True),
        ("3.13", "cuda", False),
        ("3.10", "cpu", False),
        ("3.15", "cpu", False),
    ],
)
def test_the_pythons_of_each_environment(checkout: Checkout, version: str, device: str, accepted: bool) -> None:
    (checkout.bin / "python3.11").unlink()
    checkout.stub("python3", PYTHON.replace("'3.11'", f"'{version}'"))
    checkout.settings["SLUICE_DEVICE"] = device
    done = checkout.launch("test")
    assert (done.returncode == 0) == accepted
    if device == "cuda":
        assert refused(done, "no Python 3.11, 3.12 on PATH") and "SLUICE_DEVICE=cpu starts on the CPU" in done.stderr


def test_the_pythons_are_those_that_the_locks_are_made_for() -> None:
    script = (REPOSITORY / "launch.sh").read_text(encoding="utf-8")
    assert re.findall(r'pythons="([\d. ]+)"', script) == [" ".join(SUPPORTED_PYTHONS[d]) for d in ("cpu", "cuda")]


def test_gpus_choose_the_gpu_lock_and_an_environment_of_its_own(checkout: Checkout) -> None:
    checkout.launch("recipe.yaml")
    checkout.stub("nvidia-smi", GPU)
    done = checkout.launch("recipe.yaml")
    assert f"on: {checkout.root}/.venv-gpu/bin/python SLUICE_DEVICE=cuda CUDA_VISIBLE_DEVICES=unset" in done.stdout
    cpu, gpu = checkout.installs()
    assert cpu.endswith("locks/cpu.txt") and gpu.endswith("locks/gpu.txt")
    (checkout.bin / "nvidia-smi").unlink()
    assert f"on: {checkout.venv}/bin/python" in checkout.launch("recipe.yaml").stdout
    assert len(checkout.installs()) == 2, "neither environment takes the other's place"


@pytest.mark.parametrize(
    ("settings", "lock"),
    [
        ({"SLUICE_DEVICE": "cpu"}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "gpu"),
        ({"SLUICE_DEVICE": "auto"}, "gpu"),
        ({"SLUICE_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}, "gpu"),
    ],
)
def test_the_device_can_be_chosen(checkout: Checkout, settings: dict[str, str], lock: str) -> None:
    checkout.stub("nvidia-smi", GPU)
    checkout.settings.update(settings)
    done = checkout.launch("recipe.yaml")
    (install,) = checkout.installs()
    assert install.endswith(f"locks/{lock}.txt")
    assert lock == "gpu" or done.stdout.endswith("SLUICE_DEVICE=cpu CUDA_VISIBLE_DEVICES=\n")


def test_a_device_that_is_none_is_refused(checkout: Checkout) -> None:
    checkout.settings["SLUICE_DEVICE"] = "gpu"
    assert refused(checkout.launch("test"), "SLUICE_DEVICE=gpu is no device; use cpu, cuda or auto")


def test_the_suite_runs_on_the_cpu_environment_unless_told_otherwise(checkout: Checkout) -> None:
    checkout.stub("nvidia-smi", GPU)
    done = checkout.launch("test")
    assert "SLUICE_DEVICE=cpu" in done.stdout and "SLUICE_DEVICE=cuda ./launch.sh test -m gpu" in done.stderr
    checkout.settings["SLUICE_DEVICE"] = "cuda"
    assert "SLUICE_DEVICE=cuda" in checkout.launch("test", "-m", "gpu").stdout


def test_a_driver_without_gpus_chooses_the_cpu_lock(checkout: Checkout) -> None:
    checkout.stub("nvidia-smi", "#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    checkout.launch("test")
    (install,) = checkout.installs()
    assert install.endswith("locks/cpu.txt")


@pytest.mark.parametrize(
    ("settings", "removed", "words"),
    [
        ({"STUB_UNSUPPORTED": "1"}, [], "no Python 3.11, 3.12, 3.13, 3.14 on PATH"),
        ({}, ["python3.11"], "apt-get install python3 python3-venv"),
        ({"STUB_NO_VENV": "1"}, [], "apt-get install python3-venv"),
        ({}, ["git"], "apt-get install git"),
        ({}, ["flock"], "apt-get install util-linux"),
    ],
)
def test_a_missing_tool_is_one_line_before_anything_is_built(
    checkout: Checkout, settings: dict[str, str], removed: list[str], words: str
) -> None:
    checkout.settings.update(settings)
    for name in removed:
        (checkout.bin / name).unlink()
    done = checkout.launch("test")
    assert refused(done, words) and len(done.stderr.splitlines()) == 1
    assert not checkout.installs() and not checkout.venv.exists()


def test_another_architecture_is_refused(checkout: Checkout) -> None:
    checkout.stub("uname", "#!/bin/sh\necho Linux riscv64\n")
    assert refused(checkout.launch("test"), "and this is Linux riscv64; set SLUICE_VENV")
    checkout.stub("uname", "#!/bin/sh\necho Linux aarch64\n")
    assert refused(checkout.launch("test"), "this is aarch64: the packages of locks/cpu.txt exist for it, but nobody")
    assert not checkout.venv.exists() and not checkout.installs()


def test_a_checkout_that_cannot_be_written_is_refused(checkout: Checkout) -> None:
    checkout.venv.with_name(".venv.build").touch()  # a file in the folder's place: permissions do not stop root
    assert refused(checkout.launch("test"), "set SLUICE_VENV to an environment elsewhere")
    assert not checkout.venv.exists()


def test_too_little_disk_is_refused(checkout: Checkout) -> None:
    checkout.stub("df", "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 9 9 5242880\\n'\n")
    assert refused(checkout.launch("test"), f"needs {ENVIRONMENT_GB['cpu']} GB") and not checkout.venv.exists()
    checkout.settings["SLUICE_DEVICE"] = "cuda"
    assert refused(checkout.launch("test"), f"5 GB free in {checkout.root}, and the environment needs")
    assert refused(checkout.launch("test"), f"needs {ENVIRONMENT_GB['cuda']} GB") and not checkout.installs()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipes/none.yaml"], "'recipes/none.yaml'"),
        (["pln"], "'pln'"),
        (["plan"], "plan needs a recipe"),
        (["plan", "x"], "'x'"),
    ],
)
def test_a_misspelt_recipe_or_verb_builds_nothing(checkout: Checkout, arguments: list[str], words: str) -> None:
    assert refused(checkout.launch(*arguments), words) and not checkout.venv.exists()


def test_an_environment_of_ones_own_is_used_as_it_is(checkout: Checkout, tmp_path: Path) -> None:
    own = tmp_path / "own"
    checkout.settings["SLUICE_VENV"] = str(own)
    assert refused(checkout.launch("test"), "holds no bin/python")
    (own / "bin").mkdir(parents=True)
    shutil.copy(checkout.bin / "python3.11", own / "bin" / "python")
    assert checkout.launch("test").stdout.startswith("ran: ")
    assert not checkout.installs() and not checkout.venv.exists()


@pytest.mark.parametrize("verb", ["doctor", "lock", "new"])
def test_verbs_that_need_no_package_do_not_wait_for_the_environment(checkout: Checkout, verb: str) -> None:
    assert checkout.launch(verb).stdout.startswith(f"ran: -P -m rl.cli {verb} ")
    assert not checkout.installs()


def test_bubblewrap_is_installed_where_it_can_be_and_before_the_environment(checkout: Checkout) -> None:
    bwrap = checkout.bin / "bwrap"
    bwrap.rename(checkout.bin / "not-yet")
    checkout.stub("id", "#!/bin/sh\necho 0\n")
    checkout.stub("apt-get", f'#!/bin/sh\necho "apt-get $*" >>"$STUB_CALLS"\nmv {checkout.bin}/not-yet {bwrap}\n')
    assert checkout.launch("recipe.yaml").returncode == 0
    calls = checkout.calls.read_text(encoding="utf-8").splitlines()
    apt = calls.index("apt-get -o DPkg::Lock::Timeout=120 install -y -qq bubblewrap")
    assert apt < next(place for place, call in enumerate(calls) if call.startswith("-m pip install"))


@pytest.mark.parametrize("user", ["0", "1000"])
def test_bubblewrap_that_cannot_be_installed_is_told_before_anything_is_downloaded(
    checkout: Checkout, user: str
) -> None:
    """launch.sh goes on: only rl/cli.py knows whether the recipe runs code, and refuses a recipe that does."""
    (checkout.bin / "bwrap").unlink()
    checkout.stub("id", f"#!/bin/sh\necho {user}\n")
    checkout.stub("apt-get", "#!/bin/sh\necho 'E: no such package' >&2\nexit 100\n")
    done = checkout.launch("recipe.yaml")
    assert done.returncode == 0
    told, built = (done.stderr.index(words) for words in ("sudo apt-get install bubblewrap", "launch: building"))
    assert told < built and ("E: no such package" in done.stderr) == (user == "0")


def test_bubblewrap_is_not_asked_for_where_nothing_uses_it(checkout: Checkout) -> None:
    (checkout.bin / "bwrap").unlink()
    checkout.stub("id", "#!/bin/sh\necho 1000\n")
    for verb in (["plan", "recipe.yaml"], ["check"]):
        done = checkout.launch(*verb)
        assert done.returncode == 0 and "bubblewrap is missing" not in done.stderr


def test_ci_runs_the_same_command_without_input() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert "./launch.sh test </dev/null" in script and os.access(REPOSITORY / ".ci" / "run", os.X_OK)
