import base64
import html
import io
import json
import math
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from helpers.pages import make_run, train_line, val_line
from PIL import Image

from cifar_dist.__main__ import main
from cifar_dist.config import TrainConfig
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config
from cifar_dist.record.reader import read_run
from cifar_dist.report.gallery import MOST_RIGHT
from cifar_dist.report.page import MOST_POINTS, charts, write_report
from cifar_dist.report.provenance import commands
from cifar_dist.report.results import tiles


def logits_of(path: Path, split: str = "val") -> tuple[np.ndarray, np.ndarray]:
    with np.load(path / f"predictions-{split}.npz") as file:
        return file["targets"], file["logits"].astype(np.float64)


def embedded(page: str, name: str) -> list | dict:
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)[1])


def text_of(page: str) -> str:
    """What a reader sees."""
    visible = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", visible)).split())


def rows_of(page: str) -> dict[str, list[str]]:
    """The table of classes: name -> the values its cells sort by."""
    table = page[page.index('id="classes"') : page.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]
    return {re.search(r'scope="row">(.*?)<', row)[1]: re.findall(r'data-value="(.*?)"', row) for row in rows}


def test_the_table_of_classes_holds_what_counting_one_image_after_the_other_gives(tmp_path):
    make_run(tmp_path / "run")
    rows = rows_of(write_report(tmp_path / "run", None).read_text())
    targets, logits = logits_of(tmp_path / "run")
    for c, name in enumerate(("cat", "dog", "ship", "frog")):
        guesses = [sorted(range(4), key=lambda k: -line[k])[:2] for line in logits[targets == c]]
        firsts = [first for first, _ in guesses]
        correct, second = firsts.count(c), [guess[1] for guess in guesses].count(c)
        taken = max(firsts.count(other) for other in range(4) if other != c)
        z, p = 1.959963984540054, correct / 100  # Wilson 1927
        low = (p + z**2 / 200 - z * math.sqrt(p * (1 - p) / 100 + z**2 / 40000)) / (1 + z**2 / 100)
        expected = [100, correct, p, low, second, (correct + second) / 100, taken]
        assert [float(value) for value in rows[name]] == pytest.approx(expected)
    assert int(rows["all"][1]) == sum(int(rows[name][1]) for name in ("cat", "dog", "ship", "frog"))


def test_all_mistakes_and_the_least_certain_hits_of_each_class_are_there_with_their_pixels(tmp_path):
    pixels = make_run(tmp_path / "run")
    page = write_report(tmp_path / "run", pixels).read_text()
    galleries = embedded(page, "galleries")
    targets, logits = logits_of(tmp_path / "run")
    exp = np.exp(logits)
    sure, first = (exp / exp.sum(axis=1, keepdims=True)).max(axis=1), logits.argmax(axis=1)
    for c, gallery in enumerate(galleries["images"]):
        wrong = {i for i in range(400) if targets[i] == c and first[i] != c}
        hits = sorted((i for i in range(400) if targets[i] == c == first[i]), key=lambda i: sure[i])
        assert len(hits) > MOST_RIGHT
        assert set(gallery["places"]) == wrong | set(hits[:MOST_RIGHT])
        assert gallery["first"] == first[gallery["places"]].tolist()
        assert gallery["confidence"] == pytest.approx(sure[gallery["places"]], abs=6e-5)
        jpeg = re.search(rf'id="sprite-{c}">(.*?)</script>', page)[1]
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg)))).astype(int)
        for tile, place in enumerate(gallery["places"]):
            row, column = (32 * part for part in divmod(tile, galleries["columns"]))
            middle = sheet[row + 8 : row + 24, column + 8 : column + 24]
            assert np.abs(middle - pixels[place, 8:24, 8:24].astype(int)).max() < 16


def test_hostile_names_are_text(tmp_path):
    names, note = ['<b>&"x', "</script x", "</style>", "{{ 7 * 7 }}"], "</script><script>alert(1)</script>"
    pixels = make_run(tmp_path / "run", names, wandb_group=note)
    page = write_report(tmp_path / "run", pixels).read_text()
    assert "<b>&" not in page and "<script>alert" not in page and page.count("</style>") == 3
    assert page.count("</script") == page.count("</script>") == page.count("<script")
    assert embedded(page, "galleries")["classes"] == names
    assert note in text_of(page) and f"{names[0]} 100" in text_of(page) and "49" not in rows_of(page)


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        (
            {"status": "finished", "best_step": 10, "test": None},
            "It was not tested. To do so: python eval.py",
        ),
        ({"status": "interrupted", "step": 12, "signal": "SIGTERM"}, "Interrupted by SIGTERM after step 12"),
        ({"status": "failed", "error": "OSError: disk full"}, "It failed: OSError: disk full. Nothing was saved"),
        ({"status": "running"}, "It ended without a word"),
    ],
)
def test_a_page_says_how_the_run_stands_and_what_to_do(tmp_path, summary, says):
    make_run(tmp_path / "run", summary=summary)
    page = write_report(tmp_path / "run", None).read_text()
    assert says in text_of(page)
    assert "data-reload-s=" not in page


def test_only_the_page_of_a_running_run_loads_itself_again(tmp_path):
    make_run(tmp_path / "run", summary={"status": "running"})
    with FileLock(tmp_path / "run/.lock"):
        page = write_report(tmp_path / "run", None).read_text()
    assert '<body data-reload-s="20">' in page and "It is running" in text_of(page)


def test_a_broken_folder_has_a_page_of_the_rest(tmp_path):
    make_run(
        tmp_path / "run", lines=[train_line(5), {**val_line(10), "per_class_accuracy": dict.fromkeys("abcd", 0.5)}]
    )
    (tmp_path / "run/config.json").write_text('{"half')
    page = write_report(tmp_path / "run", None).read_text()
    assert "can't be read (config.json: " in text_of(page)
    assert set(rows_of(page)) == {*"abcd", "all"}


@pytest.mark.parametrize("number", [4, 100])
def test_any_number_of_classes_has_a_page(tmp_path, number):
    pixels = make_run(tmp_path / "run", [f"c{i}" for i in range(number)])
    page = write_report(tmp_path / "run", pixels).read_text()
    targets, logits = logits_of(tmp_path / "run")
    cells = {
        (int(t), int(p)): int(n)
        for t, p, n in re.findall(r'true="(\d+)" data-predicted="(\d+)" data-count="(\d+)"', page)
    }
    pairs = list(zip(targets.tolist(), logits.argmax(axis=1).tolist(), strict=True))
    assert cells == {pair: pairs.count(pair) for pair in set(pairs)}


def test_a_page_without_predictions_counts_what_the_summary_holds(tmp_path):
    test = {"accuracy": 0.75, "top2_accuracy": 0.875, "loss": 0.9, "num_images": 8}
    test |= {"confusion_matrix": [[4, 0], [2, 2]], "second_guess_correct": [0, 1]}
    make_run(
        tmp_path / "run", ("cat", "dog"), predicted=None, summary={"status": "finished", "best_step": 10, "test": test}
    )
    page = write_report(tmp_path / "run", None, published=0.61).read_text()
    assert rows_of(page)["dog"] == pytest.approx(["4", "2", "0.5", rows_of(page)["dog"][3], "1", "0.75", "2"])
    assert "no predictions of single images" in text_of(page)
    assert "test accuracy 75.00 %" in text_of(
        page
    ) and "the paper's test accuracy 61.00 % +14.00 points here" in text_of(page)


def test_a_run_without_validation_has_curves_of_training_alone(tmp_path):
    make_run(tmp_path / "run", predicted=None, lines=[train_line(10), train_line(20)])
    page = write_report(tmp_path / "run", None).read_text()
    drawn = {chart["title"]: [one["name"] for one in chart["series"]] for chart in embedded(page, "charts")}
    assert drawn["Loss"] == drawn["Accuracy"] == ["training"]
    assert "Gradient norm" not in drawn  # None throughout
    assert "no counts by class" in text_of(page)


def test_a_maps_two_losses_are_not_drawn_together():
    drawn = charts([train_line(5, accuracy=None), val_line(10)], None)
    assert [(chart["title"], [one["name"] for one in chart["series"]]) for chart in drawn[:2]] == [
        ("Training loss", ["training"]),
        ("Accuracy", ["validation"]),
    ]


def test_long_curves_are_thinned_and_keep_their_ends():
    (rate,) = (
        chart for chart in charts([train_line(s) for s in range(1, 5001)], None) if chart["title"] == "Learning rate"
    )
    points = rate["series"][0]["points"]
    assert len(points) == MOST_POINTS
    assert points[0] == [0.1, 0.1] and points[-1] == [500.0, 0.1]


def test_losses_by_step_are_means_over_the_images_of_lines_in_a_row():
    lines = [
        train_line(s) | {"samples": s * s, "accuracy": 1 / s} for s in range(1, 1001)
    ]  # later lines count for more
    loss, accuracy = (chart for chart in charts(lines, None) if chart["xLabel"] == "step")
    assert loss["title"] == "Training loss by step: a point is the mean of 4 logged lines"
    points = loss["series"][0]["points"]
    assert [step for step, _ in points] == [*range(4, 1001, 4)] and len(points) <= MOST_POINTS
    images = [2 * s - 1 for s in range(1, 1001)]  # s² - (s - 1)²
    for i, (_, value) in enumerate(points):
        four = range(4 * i, 4 * i + 4)
        assert value == pytest.approx(sum(images[j] * 2 / (j + 1) for j in four) / sum(images[j] for j in four))
    assert [y for _, y in accuracy["series"][0]["points"]] == pytest.approx([y / 2 for _, y in points])


def test_lines_that_are_the_curves_points_are_not_drawn_twice():
    lines = [line for s in (10, 20, 30) for line in (train_line(s), val_line(s))]
    assert all(chart["xLabel"] == "epoch" for chart in charts(lines, None))
    finer = [train_line(5), *lines]
    assert [chart["title"] for chart in charts(finer, None) if chart["xLabel"] == "step"] == [
        "Training loss by step",
        "Training accuracy by step",
    ]


def test_the_tiles_say_the_gap_the_best_validation_and_the_distance_to_the_paper(tmp_path):
    lines = [train_line(5, 0.5), val_line(10, 0.375), train_line(15, 0.75), {**val_line(20, 0.25), "loss": 9.0}]
    lines += [{**train_line(30, 0.875), "images_per_second": 700.0}, {**val_line(30, 0.125), "kind": "test"}]
    make_run(tmp_path / "run", lines=lines)
    found = {label: (value, note) for label, value, note in tiles(read_run(tmp_path / "run"), 0.5)}
    assert found["test accuracy"][0] == "12.50 %"
    assert found["the paper's test accuracy"] == ("50.00 %", "−37.50 points here")
    assert found["validation accuracy"][0] == "37.50 %" and found["best step"][0] == "10"
    assert found["generalisation gap"] == ("+50.0 points", "training minus validation accuracy; no over-fitting so far")
    assert found["training time"][1] == "100 images/s, the median"


def test_the_papers_number_and_the_opening_of_the_gap_are_marked():
    lines = [line for i in range(1, 6) for line in (train_line(10 * i), {**val_line(10 * i), "loss": 1.0 + 0.1 * i})]
    loss, accuracy = charts(lines, 0.61)[:2]
    assert loss["vlines"] == accuracy["vlines"] == [{"x": 1.0, "label": "the gap opens"}]
    assert accuracy["hlines"] == [{"y": 0.61, "label": "the paper's test accuracy, 61.00 %"}]


def test_synthetic_data_is_announced_at_the_head(tmp_path):
    make_run(tmp_path / "run", synthetic=True)
    assert "SYNTHETIC DATA" in text_of(write_report(tmp_path / "run", None).read_text())[:200]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 70, "epochs": None, "augment": (), "nesterov": True, "seed": 3, "val_fraction": 0.0},
        {"model": "som", "recipe": "pandey2020", "model_options": ("rows=4",), "label_smoothing": 0.0},
        {
            "optimizer": "adamw",
            "nesterov": True,
            "folds": 5,
            "fold": 2,
            "data": "/a folder/it's",
            "test": False,
            "threads": 7,
        },
    ],
)
def test_the_command_of_a_page_gives_the_runs_options_again(tmp_path, options):
    make_run(tmp_path / "run", output_dir=str(tmp_path / "run"), wandb_tags=("a",), **options)
    record = read_run(tmp_path / "run")
    checkout, command = commands(record)
    assert checkout == "git checkout 0123abc"
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:6] == ["accelerate", "launch", "--config_file", "launch/multi_cpu.yaml", "--num_processes", "2"]
    parser = OneLineParser()
    add_flags(parser, TrainConfig)
    again = resolve_train_config(parser.parse(words[7:])).to_dict()
    elsewhere = {"output_dir", "threads", *(f.name for f in fields(TrainConfig) if f.name.startswith("wandb"))}
    assert {k: v for k, v in again.items() if k not in elsewhere} == {
        k: v for k, v in record.config.items() if k not in elsewhere
    }
    assert again["threads"] == 3 and again["output_dir"] is None


@pytest.mark.parametrize("command", ["train.py; rm -rf ~", "train.py $(reboot)", "train.py 'x\nreboot", "`reboot`"])
def test_a_foreign_runs_command_is_one_command(tmp_path, command):
    make_run(tmp_path / "run", recipe="unknown")
    path = tmp_path / "run/config.json"
    content = json.loads(path.read_text())
    content["starts"][0]["command"] = command
    content["starts"][-1]["git_commit"] = "0123; reboot"
    path.write_text(json.dumps(content))
    for line in commands(read_run(tmp_path / "run")):
        script = f"rm() {{ touch ran; }}; reboot() {{ touch ran; }}; git() {{ :; }}; accelerate() {{ :; }}; {line}"
        subprocess.run(["bash", "-c", script], cwd=tmp_path, check=False, capture_output=True)
    assert not (tmp_path / "ran").exists()


def test_a_page_of_a_foreign_run_neither_downloads_nor_makes_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", data="cifar10", data_dir="elsewhere/data")
    before = {p.name for p in tmp_path.iterdir()}
    assert main(["report", "run"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == before
    assert "--data cifar10 is not decoded in elsewhere/data; --data-dir says where" in " ".join(
        capsys.readouterr().out.split()
    )


def test_options_that_are_not_the_recipes_own_stand_out(tmp_path):
    make_run(tmp_path / "run")
    page = write_report(tmp_path / "run", None).read_text()
    differing = page[page.index("What differs") : page.index("<details")]
    assert re.search(r'class="differs"><td><code>--lr</code></td><td>0.02</td><td>0.05</td>', differing)
    assert "--momentum" not in differing and "--momentum" in page


def test_the_environment_of_every_start_is_there(tmp_path):
    make_run(tmp_path / "run")
    text = text_of(write_report(tmp_path / "run", None).read_text())
    for part in (
        "0123abc",
        "node1",
        "2, 3 CPU threads each",
        "torch 2.14.1",
        "torchvision –",
        "train.py --model lenet",
        "f00d",
    ):
        assert part in text


def test_the_report_command_writes_pages_with_the_images_of_the_runs_own_split(train, folders, capsys):
    folder = train(name="a").folder
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    galleries = embedded(page, "galleries")
    files = sorted((folders / "test").glob("*/*.png"))  # in the order of the split: by class, then by name
    assert galleries["split"] == "test" and galleries["classes"] == ["bird", "cat", "dog", "ship"]
    for c, gallery in enumerate(galleries["images"]):
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(rf'id="sprite-{c}">(.*?)<', page)[1]))))
        for tile, place in enumerate(gallery["places"]):
            row, column = (32 * part for part in divmod(tile, galleries["columns"]))
            truth = np.asarray(Image.open(files[place])).astype(int)
            assert (
                np.abs(sheet[row : row + 32, column : column + 32].mean(axis=(0, 1)) - truth.mean(axis=(0, 1))).max()
                < 3
            )
    assert f"written to {folder / 'report.html'}" in capsys.readouterr().out.replace("\n", "")


def test_the_report_command_does_all_runs_of_a_folder(tmp_path):
    (tmp_path / "runs/notes").mkdir(parents=True)
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, data=str(tmp_path / "gone"))
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert len(list(tmp_path.glob("runs/*/report.html"))) == 2


def test_the_report_command_does_without_data_and_says_so(tmp_path, capsys):
    make_run(tmp_path / "run", data=str(tmp_path / "gone"))
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "shows no images: --data" in capsys.readouterr().out
    assert "the pictures themselves aren't here" in text_of((tmp_path / "run/report.html").read_text())


@pytest.mark.parametrize(("words", "says"), [([], "which runs?"), (["nowhere"], "nowhere is not a run folder")])
def test_the_report_command_refuses_what_is_no_run(words, says, capsys):
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
