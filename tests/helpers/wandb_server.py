"""A stand-in for the Weights & Biases server, in a process of its own, for the real client to talk to."""

import argparse
import base64
import contextlib
import json
import subprocess
import sys
import threading
import traceback
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from helpers.wandb_store import Json, Store

KEY = "0123456789" * 4


class Handler(BaseHTTPRequestHandler):
    """HTTP around a `Store`: the client's requests, and two of the tests' (GET /runs, POST /outage, POST /stop)."""

    protocol_version = "HTTP/1.1"
    store: Store
    authorization: str
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.lock:
                status, content = self.answer(body)
        except Exception:
            self.store.record("error", path=self.path, body=body.decode(errors="replace"), error=traceback.format_exc())
            status, content = 400, {"errors": [{"message": "see the log of tests/wandb_server.py"}]}
        if status == 0:
            self.close_connection = True
            return
        reply = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815

    def answer(self, body: bytes) -> tuple[int, Json]:
        """Return the status, 0 for none at all, and the content of the reply."""
        if self.path == "/runs":
            return 200, {name: run.view() for name, run in self.store.runs.items()}
        if self.path == "/stop":
            self.store.stopped = True
            return 200, {}
        if self.path == "/outage":
            self.store.outage = body.decode()
            self.store.record("outage", how=body.decode())
            return 200, {}
        if self.store.outage in ("503", "close"):
            return (503 if self.store.outage == "503" else 0), {}
        status, content = self.serve(body)
        return (0 if self.store.outage == "lost" else status), content

    def serve(self, body: bytes) -> tuple[int, Json]:
        if self.command == "PUT":
            self.store.upload(self.path, len(body))
            return 200, {}
        if self.headers.get("Authorization") != self.authorization:
            self.store.record("unauthorized", path=self.path)
            return 401, {"errors": [{"message": "user is not logged in"}], "data": None}
        sent = json.loads(body)
        if self.path.endswith("/file_stream"):
            self.store.file_stream(self.path.split("/")[-2], sent)
            return 200, {"stopped": True} if self.store.stopped else {}
        return 200, {"data": self.store.execute(sent["query"], sent.get("variables") or {})}


class Server:
    """A running server, as a test sees it."""

    def __init__(self, url: str, log: Path, key: str) -> None:
        self.url, self.log, self.key = url, log, key

    def environment(self) -> dict[str, str]:
        """Return variables that make the client talk to this server alone and write beside the server's log alone."""
        folders = dict.fromkeys(
            ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"), str(self.log.parent)
        )
        login = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.key, "NETRC": str(self.log.parent / "netrc")}
        return {**folders, **login, "WANDB_MODE": "online", "WANDB_ERROR_REPORTING": "false"}

    def events(self, what: str | None = None) -> list[Json]:
        """Return what was sent to the server, in order: UpsertBucket, file_stream, upload, outage, unauthorized, ..."""
        events = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [event for event in events if what in (None, event["what"])]

    def runs(self) -> dict[str, Json]:
        """Return what the server holds of each run, by its id; see `Run.view`."""
        return self._ask("/runs", None)

    def run(self, name: str) -> Json:
        return self.runs()[name]

    def outage(self, how: str = "503") -> None:
        """Fail from now on: "503" says so, "close" closes connections unheard, "lost" does what is asked but never replies."""
        self._ask("/outage", how)

    def stop(self) -> None:
        """Press every run's stop button."""
        self._ask("/stop", "")

    def heal(self) -> None:
        self._ask("/outage", "")

    def _ask(self, path: str, content: str | None) -> Json:
        body = None if content is None else content.encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body), timeout=10) as reply:
            answer: Json = json.load(reply)
            return answer


@contextlib.contextmanager
def stub_server(folder: Path, key: str = KEY) -> Iterator[Server]:
    """Run a server in a process of its own; its log and the client's files go to `folder`."""
    log = folder / "server.jsonl"
    command = [sys.executable, "-m", "helpers.wandb_server", "--log", str(log), "--key", key]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process.stdout.readline().strip(), log, key)
        finally:
            process.kill()


def main() -> None:
    """Serve until killed; the first line of output is the URL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--key", default=KEY)
    options = parser.parse_args()
    Handler.store = Store(options.log)
    Handler.authorization = "Basic " + base64.b64encode(f"api:{options.key}".encode()).decode()
    with ThreadingHTTPServer(("127.0.0.1", options.port), Handler) as server:
        # A client that ends with connections open is no error.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        Handler.store.url = f"http://127.0.0.1:{server.server_address[1]}"
        print(Handler.store.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
