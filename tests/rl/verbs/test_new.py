"""The verb `new`: what it writes passes its own test, loads as a run loads it and fits a recipe; what it refuses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewards.extension import load
from rl.cli import main
from rl.paths import REPOSITORY
from rl.recipe import marked_yaml
from rl.recipe.extensions import KINDS as REGISTRIES
from rl.recipe.extensions import chosen_settings
from rl.recipe.load import load_recipe
from rl.verbs import new
from rl.verbs.new import KINDS, attribute_of, name_problem
from tests.support import recipe_of

QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"
PAGE = 66
"""Lines of a page."""


@dataclass(frozen=True)
class Written:
    """A generated extension, and what `new` said about it."""

    kind: str
    file: Path
    test: Path
    output: str

    @property
    def name(self) -> str:
        """Its name in a recipe."""
        return f"{self.file}:{attribute_of(self.kind, self.file.stem)}"

    @property
    def commands(self) -> list[list[str]]:
        return [shlex.split(line)[1:] for line in self.output.splitlines() if "launch.sh " in line]

    @property
    def recipe(self) -> str:
        """The lines for a recipe."""
        return re.sub(r"^  ", "", self.output.split("directory):\n")[1].split("\n\n")[0], flags=re.MULTILINE)


def write(kind: str, name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Written:
    assert main(["new", kind, name, str(folder)]) == 0
    return Written(kind, folder / f"{name}.py", folder / f"test_{name}.py", capsys.readouterr().out)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_loads_and_fits_a_recipe(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder's name has a blank and a sign of YAML, so that everything printed has to be quoted."""
    monkeypatch.chdir(tmp_path)
    written = write(kind, "my_first", tmp_path / "a folder, mine", capsys)
    assert written.output.startswith(f"wrote {written.file} and {written.test}\n")
    registry, base = REGISTRIES[kind]
    assert load(registry, written.name).__name__ == ("MyFirst" if KINDS[kind].is_class else "my_first")
    assert chosen_settings(kind, written.name) is not base

    test, plan, run = written.commands
    assert test == ["test", str(written.test)] and plan == ["plan", run[0], *run[2:]]
    overridden = load_recipe(run[0], run[1:])
    assert written.name in overridden.model_dump_json()
    sections = marked_yaml.parse(QUICKSTART.read_text(encoding="utf-8")).data
    for section, keys in marked_yaml.parse(written.recipe).data.items():
        sections[section] = sections.get(section, {}) | keys
    assert recipe_of(tmp_path, sections, "run.steps=4") == overridden, "the settings that it prints are the defaults"


@pytest.mark.parametrize("kind", KINDS)
def test_an_extension_is_a_page_and_a_checkout_with_it_is_clean(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write(kind, "my_first", tmp_path, capsys)
    for file in (written.file, written.test):
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= PAGE and not re.search("example", text, re.IGNORECASE)
    configuration = ["--config", str(REPOSITORY / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["format", "--check"], ["check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, *configuration], check=True, capture_output=True)


@pytest.mark.slow
def test_the_printed_commands_work_in_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the run, which tests/e2e/test_new.py starts."""
    monkeypatch.chdir(tmp_path)
    written = write("reward", "brevity", tmp_path / "mine", capsys)
    for command, said in zip(written.commands[:2], (" passed in ", "brevity.py:Brevity"), strict=True):
        done = launch(*command, cwd=tmp_path)
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_plan_shows_a_recipe_with_it(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write(kind, "my_first", tmp_path, capsys)
    assert main(written.commands[1]) == 0
    assert f"name: {written.name}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tests_that_are_written_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        write(kind, f"own_{kind}", tmp_path, capsys)
    done = launch("test", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 2 * len(KINDS)


def test_it_answers_before_there_is_an_environment(tmp_path: Path) -> None:
    """-I -S: without any package that is installed."""
    path = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})"
    script = f"{path}; from rl.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-I", "-S", "-c", script, "new", "loss", "mine", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (tmp_path / "mine.py").exists(), done.stderr


def test_in_the_checkout_paths_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(new, "REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["new", "correction", "near", "mine"]) == 0
    said = capsys.readouterr().out
    assert "wrote mine/near.py and mine/test_near.py" in said
    assert "  ./launch.sh recipes/quickstart.yaml run.steps=4 correction=mine/near.py:near" in said


def test_nothing_is_overwritten_and_half_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for there, other in (("mine.py", "test_mine.py"), ("test_mine.py", "mine.py")):
        folder = tmp_path / there
        folder.mkdir()
        (folder / there).write_text("precious", encoding="utf-8")
        assert main(["new", "loss", "mine", str(folder)]) == 2
        assert f"{folder / there}: File exists" in capsys.readouterr().err
        assert (folder / there).read_text(encoding="utf-8") == "precious" and not (folder / other).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "new takes a kind, a name and at most a directory"),
        (["loss"], "new takes a kind, a name and at most a directory"),
        (["loss", "mine", "a", "b"], "new takes a kind, a name and at most a directory"),
        (["loss", "mine", "--force"], "new takes no options, got '--force'"),
        (["enviroment", "mine"], "did you mean 'environment'?"),
        (["transport", "mine"], "there are environment, reward, advantage, loss, correction"),
        (["loss", "9lives"], "a NAME begins with a letter"),
        (["loss", "a-b"], "a NAME begins with a letter"),
        (["loss", "../mine"], "a NAME begins with a letter"),
        (["loss", "größe"], "a NAME begins with a letter"),
        (["loss", ""], "a NAME begins with a letter"),
        (["loss", "a\nb"], "a NAME begins with a letter"),
        (["loss", "lambda"], "that is a keyword of Python"),
        (["reward", "none"], "that is a keyword of Python"),
        (["loss", "json"], "json.py would hide a module"),
        (["loss", "torch"], "torch.py would hide a module"),
        (["loss", "rewards"], "rewards.py would hide a module"),
        (["loss", "conftest"], "conftest.py would hide a module"),
        (["loss", "log_ratio"], "the code of this kind uses the name log_ratio itself"),
        (["advantage", "sum"], "the code of this kind uses the name sum itself"),
        (["environment", "episode"], "the code of this kind uses the name Episode itself"),
        (["reward", "ending"], "the code of this kind uses the name Ending itself"),
        (["loss", "mine", "a\tb"], "has signs that no recipe can hold"),
        (["loss", "mine", __file__], "test_new.py: File exists; give another NAME or DIRECTORY"),
        (["loss", "m" * 300], "File name too long; give another NAME or DIRECTORY"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1 and words in said.err
    assert not list(tmp_path.iterdir())


def test_packages_count_before_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert "deepspeed.py would hide" in str(name_problem("loss", "deepspeed"))
    assert name_problem("loss", "mine") is None
    assert name_problem("loss", "ratio") is None, "a variable of a function does no harm"
    assert name_problem("loss", "example") is None and name_problem("reward", "example") is None


def launch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    command = [str(REPOSITORY / "launch.sh"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
