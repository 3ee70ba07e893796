"""`python -m cifar_dist verify` and `--keep-every`."""

import json

import pytest
from helpers.runs import torchrun
from safetensors.numpy import load_file, save_file

from cifar_dist.__main__ import main
from cifar_dist.config import TrainConfig
from cifar_dist.record import checkpoint
from cifar_dist.record.folder import RunFolder
from cifar_dist.record.lines import ConfigRecord
from cifar_dist.replay.job import done_in_one_way, make_job, stretches
from cifar_dist.replay.states import kept_digests, recorded_digests


def verify(run, *options) -> tuple[int, dict]:
    status = main(["verify", str(run.folder), *options])
    return status, json.loads((run.folder / "verify.json").read_text())


@pytest.mark.parametrize(
    "options",
    [
        ["--ema-decay", "0.9", "--max-grad-norm", "0.5"],
        ["--model", "som", "--recipe", "pandey2020", "--model-options", "rows=4", "columns=4"],
        ["--val-fraction", "0", "--optimizer", "adamw", "--micro-batch-size", "9"],
    ],
)
def test_an_honest_run_is_the_same_when_it_is_done_again(train, options, capsys):
    run = train(*options, "--keep-every", "1", "--keep-checkpoints", "1")
    status, said = verify(run, "--segments", "9")
    assert status == 0 and said["same"] and said["machine"] == []
    steps = run.json("summary.json")["total_steps"] // 3
    again = [verdict["what"] for verdict in said["verdicts"] if verdict["what"].startswith("steps")]
    assert again == [f"steps {i * steps} to {(i + 1) * steps}" for i in range(3)]
    assert "this machine computes as the run's did" in capsys.readouterr().out


def test_a_validations_digests_are_those_of_the_checkpoint_after_it(train):
    run = train("--keep-every", "1")
    known, kept = recorded_digests(run.folder), kept_digests(run.folder)
    assert len(known) == 3
    for step, digests in known.items():
        assert kept[step] == digests
    assert len({digests["weights_digest"] for digests in known.values()}) == 3


def test_a_changed_weight_is_found_in_the_file_and_in_a_checkpoint(train, capsys):
    run = train("--keep-every", "1")
    path = run.folder / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = tensors[name] + 1e-6
    save_file(tensors, path)
    status, said = verify(run, "--segments", "1")
    assert status == 1
    assert [v["what"].split()[0] for v in said["verdicts"] if not v["same"]] == ["model.safetensors"]

    first = checkpoint.saved_steps(run.folder / "checkpoints")[0]
    where = checkpoint.folder_for(run.folder / "checkpoints", first)
    files = checkpoint.load(where).files
    other = checkpoint.load(checkpoint.folder_for(run.folder / "checkpoints", 2 * first)).files
    checkpoint.save(run.folder / "checkpoints", first, {**files, "training.pt": other["training.pt"]})
    status, said = verify(run, "--segments", "9")
    assert status == 1
    assert f"checkpoint {first} is what was recorded" in [v["what"] for v in said["verdicts"] if not v["same"]]
    assert f"steps {first} to {2 * first}" in [v["what"] for v in said["verdicts"] if not v["same"]]
    assert f"steps 0 to {first}" in [v["what"] for v in said["verdicts"] if v["same"]]  # as the record has them
    assert "DIFFERENT" in capsys.readouterr().out


def test_another_machine_is_named_beforehand(train, capsys):
    run = train()
    record = run.json("config.json")
    record["starts"][0]["kernels"]["cpu"] = "AVX9"
    record["starts"][0]["packages"]["torch"] = "1.0"
    RunFolder(run.folder).write_config(record)
    _, said = verify(run, "--segments", "1")
    assert len(said["machine"]) == 2
    assert said["machine"][0].startswith("torch is ") and said["machine"][0].endswith(", was 1.0")
    assert said["machine"][1].startswith("cpu is ") and said["machine"][1].endswith(", was AVX9")
    assert "this machine may round otherwise: torch is" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nothing", "made"])
def test_what_is_no_run_is_refused_in_a_line(tmp_path, capsys, name):
    (tmp_path / "made").mkdir()
    assert main(["verify", str(tmp_path / name)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["verify", "RUN"], ["bisect", "RUN", "RUN"]])
def test_a_folder_for_the_answer_that_is_not_there_is_named_before_anything_is_done(train, capsys, command):
    run = train("--steps", "1")
    words = [str(run.folder) if word == "RUN" else word for word in command]
    assert main([*words, "--output", "/no/such/x.json"]) == 2
    assert "--output /no/such/x.json: there is no folder /no/such; make it first" in capsys.readouterr().err


def test_data_that_are_gone_are_named(train, capsys):
    run = train()
    record = run.json("config.json")
    record["config"]["data"] = "/no/such"
    RunFolder(run.folder).write_config(record)
    assert main(["verify", str(run.folder), "--segments", "1"]) == 2
    assert "can't be done again: --data /no/such is not" in capsys.readouterr().err


def starts(*items: tuple[int, int, int], **config) -> ConfigRecord:
    names = ("from_step", "world_size", "threads_per_process")
    return {"config": config, "starts": [dict(zip(names, item, strict=True)) for item in items]}


def test_a_stretch_is_done_in_the_processes_and_threads_of_its_own_start(tmp_path):
    record = starts((0, 2, 3), (20, 4, 1), **TrainConfig(epochs=1).to_dict())
    RunFolder(tmp_path).write_config({**record, "dataset": {}})
    jobs = [make_job(tmp_path, begin, 60) for begin in (0, 19, 20, 40)]
    assert [(job.world_size, job.config.threads) for job in jobs] == [(2, 3), (2, 3), (4, 1), (4, 1)]


def test_steps_of_epochs_that_keep_every_divides_are_kept_and_no_others(train):
    run = train("--keep-every", "2", "--keep-checkpoints", "1", "--epochs", "5", "--batch-size", "36", "--no-test")
    best = run.json("summary.json")["best_step"]
    assert set(checkpoint.saved_steps(run.folder / "checkpoints")) == {2 * 6, 4 * 6, 5 * 6, best}


def test_a_stretch_over_two_ways_of_computing_is_left_out():
    record = starts((0, 1, 1), (20, 2, 1), (50, 2, 1))
    assert stretches(record, [0, 10, 20, 40], [10, 30, 60]) == [(0, 10), (20, 30), (40, 60)]
    assert stretches(record, [0, 10], [10, 20]) == [(0, 10), (10, 20)]  # the other way begins where it ends
    exact = starts((0, 1, 1), (20, 2, 1), (50, 2, 2), exact_shards=8)
    assert stretches(exact, [0, 10, 20, 40], [10, 30, 60]) == [(0, 10), (10, 30), (20, 30)]
    assert not done_in_one_way(exact, 0, 60)


@pytest.mark.slow
@pytest.mark.parametrize("exact", [[], ["--exact-shards", "4"]])
def test_a_run_of_three_processes_is_the_same_when_it_is_done_again(folders, data_dir, tmp_path, exact):
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]
    small = [
        "--model",
        "resnet20",
        "--epochs",
        "2",
        "--batch-size",
        "48",
        "--limit-train",
        "96",
        "--keep-every",
        "1",
        "--threads",
        "1",
    ]
    torchrun(3, ["train.py", *where, *small, *exact])
    assert main(["verify", str(tmp_path / "run")]) == 0
    said = json.loads((tmp_path / "run/verify.json").read_text())
    assert [v["what"] for v in said["verdicts"]][-2:] == ["steps 0 to 2", "steps 2 to 4"]
