"""The real Weights & Biases client against the stand-in for its server: what other tests rely on the stand-in for."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.wandb_server import KEY, Server, stub_server

pytest.importorskip("wandb")

START = """
import os, time, wandb
settings = wandb.Settings(x_file_stream_transmit_interval=1, x_disable_stats=True, console="off", finish_timeout=30)
def start(**options):
    return wandb.init(project="p", id="a", resume="allow", settings=settings, **options)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with stub_server(tmp_path) as server:
        yield server


class Client:
    """Python code that uses wandb, in a process without a terminal."""

    def __init__(self, server: Server, code: str, **environment: str) -> None:
        self.output = server.log.with_name("client.txt")
        variables = os.environ | server.environment() | environment
        with self.output.open("w") as file:
            command = [sys.executable, "-c", START + textwrap.dedent(code)]
            self.process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def ends_with(self, status: int) -> None:
        assert self.process.wait(timeout=60) == status, self.output.read_text()


def sync(server: Server, folder: Path) -> str:
    """Return what `wandb sync` prints; its exit status says nothing."""
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    variables = os.environ | server.environment()
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True).stderr


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps(run: dict) -> list[tuple[int, int]]:
    return [(row["_step"], row["x"]) for row in run["history"]]


def posted(server: Server) -> list[int]:
    """Return the offset of each post of rows."""
    files = [event.get("files", {}) for event in server.events("file_stream")]
    return [file["wandb-history.jsonl"]["offset"] for file in files if "wandb-history.jsonl" in file]


def test_rows_images_configuration_and_a_model_arrive(server, tmp_path):
    (tmp_path / "weights").write_bytes(b"0123")
    code = """
    import numpy
    assert wandb.login(verify=True, prompt=False)
    run = start(config={"lr": 0.1}, group="g", job_type="j", name="n", notes="o", tags=["t"])
    for i in range(3):
        run.log({"x": i})
    run.log({"x": 3, "image": wandb.Image(numpy.zeros((2, 2, 3), numpy.uint8)), "table": wandb.Table(["c"], [[1]])})
    model = wandb.Artifact("m", type="model")
    model.add_file(os.environ["WANDB_DIR"] + "/weights")
    run.log_artifact(model, aliases=["best"]).wait()
    run.summary["top"] = 7
    run.finish()
    assert wandb.Api().run("tester/p/a").lastHistoryStep == 3
    """
    Client(server, code).ends_with(0)
    run = server.run("a")
    assert steps(run) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert run["config"] == {"lr": 0.1}
    assert run["summary"]["x"] == 3 and run["summary"]["top"] == 7
    assert [run[key] for key in ("group", "job_type", "display_name", "notes", "tags")] == ["g", "j", "n", "o", ["t"]]
    assert run["files"][run["history"][3]["image"]["path"]] == run["history"][3]["image"]["size"]
    model = next(artifact for artifact in run["artifacts"] if artifact["type"] == "model")
    assert model["files"]["weights"] == 4 and set(model["aliases"]) == {"best", "latest"}
    assert (run["state"], run["exit_code"]) == ("finished", 0)
    assert not server.events("unknown") and not server.events("error")


@pytest.mark.slow
def test_a_wrong_key_is_refused_at_once(server):
    code = """
    for attempt in (lambda: wandb.login(verify=True, prompt=False), start):
        try:
            attempt()
        except wandb.errors.CommError as error:
            assert "user is not logged in" in str(error)
        else:
            raise SystemExit("not refused")
    """
    Client(server, code, WANDB_API_KEY=KEY[::-1]).ends_with(0)
    assert server.events("unauthorized") and not server.runs()


@pytest.mark.slow
def test_a_client_goes_on_behind_the_last_row_after_a_kill(server):
    client = Client(server, "run = start()\nfor i in range(4): run.log({'x': i})\ntime.sleep(60)")
    wait_until(lambda: "a" in server.runs() and len(server.run("a")["history"]) == 4)
    client.process.kill()
    client.ends_with(-signal.SIGKILL)
    assert server.run("a")["state"] == "running"
    code = "run = start()\nassert run.resumed\nrun.log({'x': 10 * run.starting_step})\nrun.finish(exit_code=3)"
    Client(server, code).ends_with(0)
    run = server.run("a")
    assert steps(run) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)] and run["offsets"] == [0, 1, 2, 3, 4]
    assert (run["state"], run["exit_code"]) == ("failed", 3)


@pytest.mark.slow
def test_a_row_logged_with_a_step_that_the_server_has_is_left_out(server):
    for first, last in ((0, 4), (2, 6)):
        code = f"run = start()\nfor i in range({first}, {last}): run.log({{'x': i + {first}}}, step=i)\nrun.finish()"
        Client(server, code).ends_with(0)
    assert steps(server.run("a")) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 6), (5, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["503", "close", "lost"])
def test_rows_of_an_outage_arrive_once_and_in_order_after_it(server, how):
    code = "run = start()\nfor i in range(40):\n    run.log({'x': i})\n    time.sleep(0.1)\nrun.finish()"
    client = Client(server, code)
    wait_until(lambda: "a" in server.runs() and server.run("a")["history"] != [])
    server.outage(how)
    received = len(posted(server))
    time.sleep(2)
    assert (len(posted(server)) > received) == (how == "lost")
    server.heal()
    client.ends_with(0)
    assert steps(server.run("a")) == [(i, i) for i in range(40)]
    assert server.run("a")["offsets"] == list(range(40))
    assert (len(posted(server)) > len(set(posted(server)))) == (how == "lost")


@pytest.mark.slow
def test_an_outage_that_lasts_ends_in_a_timeout(server):
    code = """
    settings.finish_timeout, settings.finish_timeout_raises = 3, True
    run = start()
    run.log({"x": 1})
    time.sleep(2)
    try:
        run.finish()
    except TimeoutError:
        raise SystemExit(9)
    """
    client = Client(server, code)
    wait_until(lambda: "a" in server.runs())
    server.outage()
    client.ends_with(9)


@pytest.mark.slow
def test_a_preempted_run_says_so(server):
    code = "run = start()\nrun.log({'x': 0})\nrun.mark_preempting()\ntime.sleep(60)"
    client = Client(server, code)
    wait_until(lambda: "a" in server.runs() and server.run("a")["state"] == "preempting")
    client.process.kill()
    client.ends_with(-signal.SIGKILL)
    assert steps(server.run("a")) == [(0, 0)]


@pytest.mark.slow
def test_two_offline_segments_of_a_run_are_synced_one_behind_the_other(server, tmp_path):
    for first, last in ((0, 3), (2, 4)):
        code = f"run = start()\nfor i in range({first}, {last}): run.log({{'x': i}})\nrun.finish()\ntime.sleep(1)"
        Client(server, code, WANDB_MODE="offline").ends_with(0)
    for folder in sorted((tmp_path / "wandb").glob("offline-run-*")):
        assert "Finished syncing" in sync(server, folder)
    assert steps(server.run("a")) == [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3)]
