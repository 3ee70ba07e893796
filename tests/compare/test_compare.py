"""The command: what it prints and writes, where it finds runs, W&B's folders, and following runs."""

import csv
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
from filelock import FileLock
from helpers.compared import CLASSES, DATASET, OPTIONS, curve_lines, result, write_run

from cifar_dist.__main__ import main
from cifar_dist.cli import compare as command
from cifar_dist.compare.sources import Reader, find_runs
from cifar_dist.tracking.segments import log_file, read_wandb_run, reader, run_id


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two configurations of two seeds, a killed and a broken run."""
    root = tmp_path / "runs"
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            write_run(root / f"lr{lr}-s{seed}", 0.5 + lr + seed / 100, lr=lr, seed=seed)
    write_run(root / "killed", status="running", seed=2)
    (write_run(root / "broken", seed=3) / "summary.json").write_text('{"status')
    return root


def outcome(folder: Path) -> dict:
    return json.loads((folder / "compare.json").read_text())


def test_it_prints_the_table_and_says_where_the_files_are(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", str(runs)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert lines[:2] == [["test/accuracy", "difference"], ["lr", "folders", "n", "95", "%", "interval", "p", "over"]]
    assert lines[2] == ["0.2", "lr0.2-s0,", "lr0.2-s1", "2", "70.50", "%", "±", "0.71", "–"]
    assert lines[3] == ["64.15", "–", "76.85"]
    assert lines[4] == ["0.1", "lr0.1-s0,", "lr0.1-s1", "2", "60.50", "%", "±", "0.71", "-10.00*"]
    assert lines[5] == ["54.15", "–", "66.85", "p", "=", "0.015,", "runs"]
    assert any(line[:3] == ["killed", "killed", "20"] for line in lines)
    assert "broken" in out and "summary.json: " in out
    assert f"{runs}/comparison/compare.html" in out.replace("\n", "")
    assert {path.name for path in (runs / "comparison").iterdir()} == {"compare.html", "compare.csv", "compare.json"}


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
@pytest.mark.parametrize("num_options", [1, 3, 4, 6])
def test_every_number_and_name_is_whole_in_every_width(columns, num_options, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    options = {
        "lr": 0.125,
        "batch_size": 512,
        "epochs": 30,
        "warmup": 2.5,
        "label_smoothing": 0.1,
        "weight_decay": 5e-4,
    }
    first = write_run(tmp_path / "speednet-speed94-20261128-201022", 0.75)
    second = write_run(tmp_path / "lenet-default-20261128-201522.1", 0.65, **dict([*options.items()][:num_options]))
    main(["compare", str(tmp_path), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    table = lines[: lines.index("")]
    assert max(len(line) for line in table) <= columns and len(table) <= 6
    for word in (first.name, second.name, "75.00 %", "65.00 %", "-10.00", "61.51 – 84.92", "51.14 – 76.71"):
        assert sum(word in line for line in table) == 1, word
    assert any("p = 0.826, images" in line for line in table)  # 2 (1 - Φ(1.0911)), times 3 by Holm


def test_it_says_in_words_what_a_p_value_is_over(tmp_path, capsys):
    words = {"runs": "whether the configurations differ", "images": "whether two single networks differ"}
    for over, seeds in (("images", (0,)), ("runs", (0, 1))):
        root = tmp_path / over
        for lr, seed in itertools.product((0.1, 0.2), seeds):
            write_run(root / f"{lr}-{seed}", 0.5 + lr + seed / 100, lr=lr, seed=seed)
        main(["compare", str(root), "--output", str(root)])
        out, page = " ".join(capsys.readouterr().out.split()), (root / "compare.html").read_text()
        for kind, meaning in words.items():
            assert [f"p over {kind}: {meaning}" in text for text in (out, page)] == [kind == over] * 2
        assert f", {over}" in out and f"<td>{over}</td>" in page
        assert outcome(root)["groups"][1]["difference"]["over"] == over


def test_the_json_holds_groups_and_runs(runs):
    assert main(["compare", str(runs), "--baseline", "lr 0.1"]) == 0
    content = outcome(runs / "comparison")
    assert (content["metric"], content["baseline"], content["differing"]) == ("test/accuracy", "lr 0.1", ["lr"])
    first = content["groups"][0]
    assert (first["label"], first["options"], first["n"]) == ("lr 0.2", {"lr": 0.2}, 2)
    assert first["mean"] == pytest.approx(0.705)
    assert set(first["interval"]) == {"low", "high", "method", "level"}
    assert first["difference"]["all"]["delta"] == pytest.approx(0.1)
    assert set(first["difference"]["classes"]) == set(CLASSES)
    assert content["groups"][1]["difference"] is None
    statuses = {run["name"]: (run["status"], run["counted"]) for run in content["runs"]}
    assert statuses["killed"] == ("killed", False)
    assert statuses["broken"] == ("broken", False)
    assert statuses["lr0.1-s1"] == ("finished", True)


def test_the_csv_has_a_flat_line_for_each_run(runs):
    main(["compare", str(runs), "--output", str(runs / "out")])
    rows = {row["name"]: row for row in csv.DictReader((runs / "out" / "compare.csv").open())}
    assert len(rows) == 6
    row = rows["lr0.2-s1"]
    assert (row["test/accuracy"], row["test/class/dog"], row["option/lr"], row["option/seed"]) == (
        "0.71",
        "0.71",
        "0.2",
        "1",
    )
    assert rows["killed"]["test/accuracy"] == ""
    assert not any(value.startswith(("=", "-", "+", "@")) for row in rows.values() for value in row.values())


def test_names_with_commas_quotes_and_line_breaks_survive_the_csv(tmp_path):
    names = ['a, "b"', "two\nlines", "plain"]
    for number, name in enumerate(names):
        write_run(tmp_path / "runs" / str(number), lr=0.1 * (number + 1), wandb_group=name, augment=["crop", name])
    main(["compare", str(tmp_path / "runs"), "--output", str(tmp_path)])
    with (tmp_path / "compare.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["name"])
    assert [row["option/wandb_group"] for row in rows] == names
    assert [row["option/augment"] for row in rows] == [f"crop {name}" for name in names]
    assert all(None not in row and row["status"] == "finished" for row in rows)


def test_other_peoples_text_is_no_formula_of_a_spreadsheet(tmp_path):
    formulas = ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "\t=1"]
    for number, formula in enumerate(formulas):
        write_run(tmp_path / "runs" / str(number), lr=0.1 * (number + 1), wandb_group=formula)
    main(["compare", str(tmp_path / "runs"), "--output", str(tmp_path)])
    rows = sorted(csv.DictReader((tmp_path / "compare.csv").open()), key=lambda row: row["name"])
    assert [row["option/wandb_group"] for row in rows] == [f"'{formula}" for formula in formulas]
    assert not any(value.startswith(("=", "+", "@", "\t")) for row in rows for value in row.values())


def test_synthetic_data_are_marked_wherever_a_number_of_them_is(tmp_path, capsys):
    write_run(tmp_path / "real")
    write_run(tmp_path / "drawn", 0.9, synthetic=True, lr=0.3)
    main(["compare", str(tmp_path)])
    out = capsys.readouterr().out
    assert "0.3 SYNTHETIC" in out and "0.1 SYNTHETIC" not in out
    assert "SYNTHETIC DATA: lr 0.3." in out
    page = (tmp_path / "comparison" / "compare.html").read_text()
    assert '"label":"lr 0.3 (SYNTHETIC)"' in page and page.count('<span class="tag">SYNTHETIC</span>') == 2
    assert [run["synthetic"] for run in outcome(tmp_path / "comparison")["runs"]] == [True, False]


def test_the_page_is_whole_in_itself_and_escapes_what_runs_are_called(tmp_path):
    write_run(tmp_path / "<img src=x>", model="<b>lenet")
    main(["compare", str(tmp_path)])
    page = (tmp_path / "comparison" / "compare.html").read_text()
    assert "<img src=x>" not in page and "<b>lenet" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_runs_are_found_in_folders_of_folders_each_once(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "sweep" / "0000")
    write_run(tmp_path / "runs" / "x" / "y" / "z" / "too-deep")
    (tmp_path / "runs" / "sweep" / "ranking.json").write_text("{}")
    words = [str(tmp_path / "runs"), str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "sweep" / "ranking.json")]
    assert [source.paths[0].name for source in find_runs(words)] == ["a", "0000"]


@pytest.mark.parametrize(
    "words",
    [
        "runs more --follow --metric val/accuracy",
        "--follow runs more --metric val/accuracy",
        "--metric val/accuracy runs --follow more",
        "--metric=val/accuracy --follow runs more",
    ],
)
def test_paths_and_options_come_in_any_order(words):
    paths, options = command.read_options(words.split())
    assert (paths, options.follow, options.metric) == (["runs", "more"], True, "val/accuracy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist; give run folders"),
        (["empty"], "no runs in empty; give run folders"),
        (["runs", "--metric", "test/acuracy"], "unknown --metric 'test/acuracy'. Did you mean 'test/accuracy'?"),
        (["runs", "--baseline", "b"], "unknown --baseline 'b'"),
        (["runs", "--output", "file"], "can't write to file: File exists; choose another folder with --output"),
    ],
)
def test_what_a_user_did_wrong_is_one_line_and_status_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    write_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "locked").mkdir()
    monkeypatch.setattr("cifar_dist.compare.sources.os.scandir", refuse)
    assert main(["compare", str(tmp_path / "runs")]) == 2
    assert "can't be read: Permission denied" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "locked")]) == 0
    assert "can't be read: Permission denied" in outcome(tmp_path / "runs" / "comparison")["runs"][1]["problem"]


def test_only_what_has_changed_is_read_again(runs, monkeypatch):
    reads: list[str] = []
    read_run = sys.modules["cifar_dist.compare.sources"].read_run
    monkeypatch.setattr("cifar_dist.compare.sources.read_run", lambda path: reads.append(path.name) or read_run(path))
    sources, cache = find_runs([str(runs)]), Reader()
    before = cache.read(sources)
    reads.clear()
    with (runs / "killed" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(curve_lines(0.4, 0.5, 0.9)[-1]) + "\n")
    after = cache.read(sources)
    assert reads == ["killed"]
    assert [run.step for run in after if run.name == "killed"] == [30]
    assert [old is new for old, new in zip(before, after, strict=True)].count(False) == 1


def test_a_running_run_that_is_killed_is_noticed_without_a_changed_file(tmp_path):
    folder = write_run(tmp_path / "run", status="running")
    held, cache = FileLock(folder / ".lock"), Reader()
    with held:
        assert cache.read(find_runs([str(folder)]))[0].record.status == "running"
    assert cache.read(find_runs([str(folder)]))[0].record.status == "killed"


def test_following_shows_a_new_line_and_ends_with_the_runs(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "runs" / "a", status="running")
    seen: list[dict] = []

    def pass_time(_seconds: float) -> None:
        seen.append(outcome(tmp_path / "out")["runs"][0])
        assert 'data-reload="' in (tmp_path / "out" / "compare.html").read_text()
        if len(seen) == 1:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(curve_lines(0.4, 0.5, 0.9)[-1]) + "\n")
        else:
            write_run(tmp_path / "other", 0.7).joinpath("summary.json").rename(folder / "summary.json")

    monkeypatch.setattr(command.time, "sleep", pass_time)
    monkeypatch.setattr(command, "NEXT_S", 0.0)
    with FileLock(folder / ".lock"):
        assert main(["compare", str(tmp_path / "runs"), "--follow", "--output", str(tmp_path / "out")]) == 0
    assert [(run["status"], run["step"]) for run in seen] == [("running", 20), ("running", 30)]
    final = outcome(tmp_path / "out")["runs"][0]
    assert (final["status"], final["value"]) == ("finished", 0.7)
    assert 'data-reload="' not in (tmp_path / "out" / "compare.html").read_text()


def test_control_c_ends_following_with_status_0(tmp_path, monkeypatch):
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupt)
    folder = write_run(tmp_path / "a", status="running")
    with FileLock(folder / ".lock"):
        assert main(["compare", str(folder), "--follow"]) == 0
    assert 'data-reload="' not in (tmp_path / "comparison" / "compare.html").read_text()


LOG_OFFLINE = """
import json, os, sys, wandb
folder, id, name, exit_code, *rows = sys.argv[1:]
run = wandb.init(project="p", id=id, name=name, dir=folder, mode="offline", resume="allow")
run.config.update(json.loads(os.environ["CONFIG"]))
run.define_metric("*", step_metric="global_step")
for row in json.loads(rows[0]):
    run.log(row)
run.finish(exit_code=int(exit_code))
"""


def to_row(line: dict) -> dict:
    """A line of metrics.jsonl as the tracker sends it."""
    row = {"global_step": line["step"], **{name: line[name] for name in ("epoch", "samples", "seconds")}}
    row |= {f"{line['kind']}/{name}": line[name] for name in ("loss", "accuracy", "top2_accuracy") if name in line}
    return row | {f"{line['kind']}/class/{name}": share for name, share in line.get("per_class_accuracy", {}).items()}


def log_offline(
    folder: Path, id: str, lines: list[dict], name: str = "a", exit_code: int = 0, **options: object
) -> Path:
    """Let the real client write a run; returns its folder."""
    folder.mkdir(exist_ok=True)
    config = {**OPTIONS, **options, "dataset": DATASET, "start": {"git_commit": "b" * 40}}
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "CONFIG": json.dumps(config)}
    arguments = [str(folder), id, name, str(exit_code), json.dumps([to_row(line) for line in lines])]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"} | quiet
    subprocess.run([sys.executable, "-c", LOG_OFFLINE, *arguments], check=True, env=environment, timeout=60)
    return max((folder / "wandb").glob(f"offline-run-*-{id}"))


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> dict[str, Path]:
    """W&B's folders of four starts: two of one run, whose second repeats the last rows of the first; a failed run; a cut one."""
    root = tmp_path_factory.mktemp("offline")
    lines = curve_lines(0.1, 0.2, 0.3, 0.4)
    again = [{**line, "loss": 7.0} for line in lines[2:]]
    test = {**lines[-1], "kind": "test", **result(0.6)}
    found: dict[str, Path] = {}

    def log(key: str, folder: str, *arguments: object, **options: object) -> None:
        found[key] = log_offline(root / folder, *arguments, **options)

    first = threading.Thread(target=log, args=("failed", "b", "failed00", lines[:4], "other", 1), kwargs={"lr": 0.5})
    first.start()
    log("one", "a", "segments", lines[:6])
    first.join()
    log("two", "a", "segments", [*again, test])
    return found


def test_segments_of_a_wandb_run_are_one_run_in_which_the_last_row_of_a_step_wins(offline):
    record = read_wandb_run([offline["two"], offline["one"]])
    assert (record.name, record.status, record.problem) == ("a", "finished", "")
    assert [(line["kind"], line["step"]) for line in record.lines] == [
        *((kind, step) for step in (10, 20, 30, 40) for kind in ("train", "val")),
        ("test", 40),
    ]
    assert [line["loss"] for line in record.lines[:3]] == [1.0, pytest.approx(0.9), 7.0]
    assert record.lines[1]["per_class_accuracy"] == {"cat": 0.1, "dog": 0.1}
    assert (record.config["lr"], record.dataset, record.starts[0]["git_commit"]) == (0.1, DATASET, "b" * 40)


def test_wandb_runs_are_compared_like_run_folders(offline, tmp_path):
    write_run(tmp_path / "runs" / "folder", 0.7, seed=1)
    words = [str(tmp_path / "runs"), str(offline["two"].parents[2])]
    assert main(["compare", *words, "--output", str(tmp_path / "out")]) == 0
    first, failed = outcome(tmp_path / "out")["groups"]
    assert (first["counted"], first["n"]) == (["folder", "a"], 2)
    assert first["mean"] == pytest.approx(0.65)
    assert (failed["runs"], failed["n"]) == (["other"], 0)
    statuses = {run["name"]: (run["source"], run["status"]) for run in outcome(tmp_path / "out")["runs"]}
    assert statuses == {"folder": ("folder", "finished"), "a": ("wandb", "finished"), "other": ("wandb", "failed")}


def test_a_wandb_run_that_is_also_a_run_folder_counts_once(offline, tmp_path):
    (write_run(tmp_path / "run") / "wandb.json").write_text(json.dumps({"id": "segments"}))
    sources = find_runs([str(tmp_path), str(offline["two"].parents[2])])
    assert [(source.kind, source.paths[0].name) for source in sources] == [
        ("folder", "run"),
        ("wandb", offline["failed"].name),
    ]


@pytest.mark.parametrize(("cut", "problem"), [(7, "holds no records"), (0, "holds no records"), (None, "bad header")])
def test_what_is_left_of_a_killed_wandb_run_is_a_broken_run(offline, tmp_path, cut, problem):
    folder = tmp_path / "offline-run-20260101_000000-segments"
    folder.mkdir()
    content = b"\xff" * 1000 if cut is None else log_file(offline["one"]).read_bytes()[:cut]
    log_file(folder).write_bytes(content)
    record = read_wandb_run([folder])
    assert record.status == "broken" and problem in record.problem
    assert main(["compare", str(folder)]) == 0


def test_a_wandb_log_that_ends_within_a_record_keeps_the_rows_before(offline, tmp_path):
    folder = tmp_path / "offline-run-20260101_000000-segments"
    folder.mkdir()
    whole = log_file(offline["two"]).read_bytes()
    log_file(folder).write_bytes(whole[: len(whole) * 3 // 4])
    record = read_wandb_run([folder])
    assert record.status == "running"  # it may still be writing
    assert record.lines and record.problem == ""
    os.utime(log_file(folder), (0, 0))
    assert read_wandb_run([folder]).status == "killed"


def test_the_reader_prints_what_the_documented_command_prints(offline):
    log = log_file(offline["one"])
    direct = subprocess.run(
        [*reader(), "--run-file", str(log), str(log.parent)], capture_output=True, check=True
    ).stdout
    public = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    assert direct == subprocess.run(public, capture_output=True, check=True).stdout
    assert run_id(offline["one"]) == "segments"


def test_without_wandb_its_folders_are_refused_in_one_line(offline, monkeypatch, capsys):
    monkeypatch.setattr("cifar_dist.tracking.segments.find_spec", lambda _: None)
    assert importlib.util.find_spec("wandb")
    assert main(["compare", str(offline["one"])]) == 2
    assert "needs the wandb package" in capsys.readouterr().err


def test_each_run_leads_to_its_page_where_it_has_one(tmp_path):
    for name in ("a run", "b"):
        write_run(tmp_path / "runs" / name, lr=0.1 if name == "b" else 0.2)
    (tmp_path / "runs/a run/report.html").write_text("its page")
    main(["compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out/here")])
    page = (tmp_path / "out/here/compare.html").read_text()
    links = re.findall(r'<a href="([^"]*report\.html)">a run</a>', page)
    assert len(links) == 2  # beside its configuration, and in the list of all runs
    (link,) = set(links)
    assert (tmp_path / "out/here" / unquote(link)).read_text() == "its page"


def test_an_interval_that_reaches_beyond_what_can_be_is_not_shown(tmp_path, capsys):
    for number, accuracy in enumerate((0.2, 0.6)):  # Student's t of two runs: -214 to 294 %
        write_run(tmp_path / "runs" / str(number), accuracy, seed=number)
    main(["compare", str(tmp_path / "runs"), "--output", str(tmp_path)])
    assert json.loads((tmp_path / "compare.json").read_text())["groups"][0]["interval"]["low"] < 0
    table = (tmp_path / "compare.html").read_text().split('id="groups"')[1].split("</table>")[0]
    assert '<td class="number">–</td>' in table and "-214" not in table + capsys.readouterr().out
