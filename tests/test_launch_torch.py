"""The source from which launch.sh installs torch. The builds are real; small wheels come from indexes on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rl.paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
CLI = """\
import tool
import torch
print("torch", torch.version)
try:
    import nvidia_cublas
    print("with its libraries")
except ImportError:
    pass
"""


@dataclass
class Index:
    """A simple index (PEP 503) of wheels on loopback; remembers which packages it was asked for."""

    wheels: dict[str, list[Path]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    url: str = ""

    def add(self, folder: Path, name: str, version: str) -> None:
        module = name.replace("-", "_")
        path = folder / f"{module}-{version}-py3-none-any.whl"
        info = f"{module}-{version}.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"{module}.py", f"version = {version!r}\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        self.wheels.setdefault(name, []).append(path)

    def answer(self, path: str) -> bytes | None:
        last = path.strip("/").rpartition("/")[2]
        if path.startswith("/files/"):
            found = [one for wheels in self.wheels.values() for one in wheels if one.name == last.replace("%2B", "+")]
            return found[0].read_bytes() if found else None
        self.asked.add(last)
        if last not in self.wheels:
            return None
        links = (f'<a href="/files/{one.name.replace("+", "%2B")}">{one.name}</a>' for one in self.wheels[last])
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()


def serve(index: Index) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = index.answer(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    Thread(target=server.serve_forever, daemon=True).start()
    return server


@dataclass
class Sources:
    """A checkout with small locks, pip's configured package index, and a stand-in for PyTorch's index."""

    root: Path
    wheels: Path
    configured: Index
    pytorch: Index

    def start(self) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.root),
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_INDEX_URL": self.configured.url,
            "SLUICE_TORCH_INDEX": self.pytorch.url,
            "SLUICE_DEVICE": "cpu",
        }
        command = [self.root / "launch.sh", "check"]
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Sources]:
    root, wheels = tmp_path / "checkout", tmp_path / "wheels"
    for folder in (root / "rl", root / "locks", root / "bin", wheels):
        folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "launch.sh", root)
    (root / "rl" / "cli.py").write_text(CLI, encoding="utf-8")
    (root / "locks" / "cpu.txt").write_text("tool==1.0\n", encoding="utf-8")
    (root / "locks" / "torch.txt").write_text("nvidia-cublas==13.1\ntorch==2.13.0\n", encoding="utf-8")
    (root / "bin" / PYTHON).symlink_to(Path(sys.base_prefix) / "bin" / PYTHON)
    made = Sources(root, wheels, Index(), Index())
    made.configured.add(wheels, "tool", "1.0")
    servers = [serve(made.configured), serve(made.pytorch)]
    yield made
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_cpu_build_in_a_configured_source_is_taken_from_there(sources: Sources) -> None:
    sources.configured.add(sources.wheels, "torch", "2.13.0+cpu")
    sources.pytorch.add(sources.wheels, "torch", "2.13.0+cpu")
    done = sources.start()
    assert done.stdout == "torch 2.13.0+cpu\n", done.stderr
    assert "is in a configured package source: 4 GB" in done.stderr and not sources.pytorch.asked


def test_pytorchs_index_gives_torch_and_is_asked_for_nothing_else(sources: Sources) -> None:
    sources.configured.add(sources.wheels, "torch", "2.13.0")
    sources.pytorch.add(sources.wheels, "torch", "2.13.0+cpu")
    sources.pytorch.add(sources.wheels, "tool", "1.0")
    done = sources.start()
    assert done.stdout == "torch 2.13.0+cpu\n", done.stderr
    assert f"comes from {sources.pytorch.url}" in done.stderr and sources.pytorch.asked == {"torch"}


@pytest.mark.parametrize("reachable", [True, False])
def test_the_ordinary_build_comes_with_its_libraries(sources: Sources, reachable: bool) -> None:
    for name, version in (("torch", "2.13.0"), ("nvidia-cublas", "13.1")):
        sources.configured.add(sources.wheels, name, version)
    if not reachable:
        sources.pytorch.url = "http://127.0.0.1:9/simple"
    done = sources.start()
    assert done.stdout == "torch 2.13.0\nwith its libraries\n", done.stderr
    assert "the ordinary build with its CUDA libraries, 7 GB on disk in all" in done.stderr
