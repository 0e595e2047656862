"""A hub of datasets on loopback that speaks as much of the Hugging Face hub's protocol as `datasets` asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = Mapping[str, bytes]


class Hub(ThreadingHTTPServer):
    """Serves `repositories`: by name, then by revision (`main` and others), the files by their paths."""

    def __init__(self, repositories: Mapping[str, Mapping[str, Files]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, Files]]) -> Iterator[Hub]:
    with Hub(repositories) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def commit(files: Files) -> str:
    """What stands for the commit of a revision: a hash of its files."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/api/datasets/"):
            self._api(path.removeprefix("/api/datasets/").split("/"))
        elif path.startswith("/datasets/"):
            self._file(path.removeprefix("/datasets/").split("/"))
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _files(self, owner: str, name: str, revision: str) -> Files | None:
        revisions = self.server.repositories.get(f"{owner}/{name}")
        if revisions is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        found = revisions.get(revision) or next((f for f in revisions.values() if commit(f) == revision), None)
        if found is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return found

    def _api(self, parts: list[str]) -> None:
        owner, name, *rest = parts
        what, revision, *below = [*rest, "revision", "main"] if not rest else [*rest, "main"][: max(2, len(rest))]
        files = self._files(owner, name, revision)
        if files is None:
            return
        if what == "revision":
            listed = [{"rfilename": path} for path in files]
            self._json(
                {"id": f"{owner}/{name}", "sha": commit(files), "siblings": listed, "tags": [], "private": False}
            )
        elif what == "tree":
            self._json(_tree("/".join(below), files, deep="recursive=true" in self.path.lower()))
        else:
            self._send(404, b"{}", {})

    def _file(self, parts: list[str]) -> None:
        owner, name, _, revision, *path = parts
        files = self._files(owner, name, revision)
        if files is None:
            return
        content = files.get("/".join(path))
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit(files)}
        wanted = self.headers.get("Range")
        if wanted:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            last = min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
            self._send(206, content[int(begin) : last + 1], headers)
        else:
            self._send(200, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: str, files: Files) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}


def _tree(folder: str, files: Files, *, deep: bool) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    below = [path for path in files if path.startswith(start)]
    found = [_entry(path, files) for path in below if deep or "/" not in path[len(start) :]]
    folders = {start + path[len(start) :].split("/")[0] for path in below if "/" in path[len(start) :]}
    return found + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
