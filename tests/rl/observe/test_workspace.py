"""wandb's workspace, sent by its own client to a server on loopback that says yes to everything."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rl.observe.metrics import REGISTRY
from rl.observe.sections import laid_out
from rl.paths import REPOSITORY
from tests.rl.observe.test_tracking import clean_environment

ANSWERS = {
    "viewer": {"id": "1", "username": "u", "entity": "an-entity", "flags": "{}", "teams": {"edges": []}},
    "upsertView": {"view": {"id": "V", "name": "nw-abc-v"}, "inserted": True},
}


@contextmanager
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of the server, and the views that it was sent."""
    views: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            query = json.loads(body) if body.startswith(b"{") else {"query": ""}
            if "upsertView" in query["query"]:
                views.append(query["variables"])
            content = json.dumps({"data": ANSWERS}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", views
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run-id").write_text("abc123")
    (tmp_path / "config.yaml").write_text("run: {name: mine}\nwandb: {project: a-project}\n")
    return tmp_path


def save(run: Path, address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.rl.observe.saved_workspace", str(run)],
        cwd=REPOSITORY,
        env=clean_environment(WANDB_BASE_URL=address, WANDB_API_KEY="x" * 40),
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_saves_its_workspace_once_and_people_whenever_they_ask(run: Path) -> None:
    with server() as (address, views):
        done = save(run, address)
    assert done.returncode == 0, done.stderr
    assert f"{address}/an-entity/a-project?nw=abc" in done.stdout
    assert len(views) == 2
    for view in views:
        assert (view["entityName"], view["projectName"]) == ("an-entity", "a-project")
        assert view["displayName"] == "sluice · mine"
        bank = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
        assert [section["name"] for section in bank] == [*laid_out(REGISTRY), "Trajectories"]
        assert '"abc123"' in json.dumps(json.loads(view["spec"])["section"]["runSets"])
        learning = [panel["config"] for panel in bank[0]["panels"]]
        assert {
            "chartTitle": "reward/mean",
            "xAxis": "step",
            "metrics": ["reward/mean"],
            "yAxisTitle": "reward",
        } in learning
        parts = next(config for config in learning if config["chartTitle"] == "reward/part/<name>")
        assert parts["metricRegex"] == "^reward/part/[^/]+$"
