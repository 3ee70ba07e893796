"""What users get wrong: one line on standard error, exit status 2, nothing else."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from helpers.runs import ROOT

from cifar_dist.cli import evaluate
from cifar_dist.cli import train as train_command
from cifar_dist.config import GROUPS, TrainConfig, flag
from cifar_dist.runtime import accelerator

WRONG = [
    ("--model resnet81", "unknown model 'resnet81'"),
    ("--recipe he2015", "unknown recipe 'he2015'"),
    ("--data cifar", "unknown data set 'cifar'. Did you mean 'cifar10'?"),
    ("--data no/such/folder", "--data no/such/folder is not a folder"),
    ("--augment crop flop", "unknown augmentation 'flop'. Did you mean 'flip'?"),
    ("--mixed-precision fp16", "--mixed-precision fp16 needs a GPU"),
    ("--early-size 24", "--early-size 24: lenet can't take images of that size"),
    ("--early-size 40", "--early-size must be in [20, 32), smaller than the images, got 40"),
    ("--model resnet20 --early-size 24 --epochs 1", "for the first half of the epochs, and a run of 1 has none"),
    ("--mixed-precision fp8", "unknown --mixed-precision 'fp8'"),
    ("--device gpu", "torch sees no GPU on this machine"),
    ("--seed 99999999999999999999", "--seed must be a number of at most 64 bits, got 99999999999999999999"),
    ("--batch-size 0", "--batch-size must be greater than 0, got 0"),
    ("--batch-size 100000", "--batch-size 100000 is larger than the 216 training images"),
    ("--epochs ten", "--epochs must be a whole number, got 'ten'"),
    ("--steps 5 --epochs 5", "--epochs 5 and --steps 5 both set the length"),
    ("--val-fraction 1", "--val-fraction must be in [0, 1), got 1.0"),
    ("--val-fraction 0.001", "fewer than the 4 classes"),
    ("--resume nowhere", "--resume nowhere is not auto, never, a run folder"),
    ("--output-dir /proc/run", "can't use /proc/run as the run folder"),
    ("--learning-rate 0.1", "unknown option '--learning-rate'"),
    ("--lr=-1", "--lr must be greater than 0, got -1.0"),
    ("--exact-shards 64", "--batch-size 32 can't be cut into --exact-shards 64"),
    ("--optimizer adam --nesterov", "--nesterov has no effect with --optimizer adam"),
    ("--model lenet --recipe he2016", "recipe he2016 is for resnet20"),
    ("resnet20", "unexpected argument 'resnet20'"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[argv for argv, _ in WRONG])
def test_a_wrong_input_is_one_line_and_status_2(train, capsys, argv, message):
    import torch

    if "GPU" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = train(*argv.split())
    assert result.status == 2
    assert not result.folder.exists()
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in captured.out


def test_other_ranks_are_silent(train, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert train("--model", "resnet81").status == 2
    assert capsys.readouterr().err == ""


def test_a_batch_smaller_than_the_world_is_refused_before_a_process_group_is_needed(train, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert train("--batch-size", "4").status == 2
    assert "--batch-size 4 is smaller than the 8 processes; use 8 or more" in capsys.readouterr().err


def test_a_launcher_that_started_more_processes_than_accelerate_sees_is_refused(train, capsys, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)  # but no rendezvous: each process would train alone
    monkeypatch.setattr(accelerator, "PartialState", lambda **_: SimpleNamespace(num_processes=1))
    assert train().status == 2
    assert "the launcher started 2 processes, but Accelerate sees 1" in capsys.readouterr().err


def test_accumulation_asked_of_the_launcher_is_refused(train, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert train().status == 2
    assert "leave --gradient_accumulation_steps out of the launch" in capsys.readouterr().err


def test_another_configuration_in_the_same_folder_is_refused(train, capsys):
    train("--seed", "1")
    assert train("--seed", "2").status == 2
    assert "has --seed 1, not 2; leave --seed out to go on, or use another --output-dir" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(train, capsys, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"):
        assert train().status == 2
    assert "is in use by another process" in capsys.readouterr().err


def test_never_does_not_take_a_folder_from_a_run_that_lives(train, capsys):
    from filelock import FileLock

    result = train()
    with FileLock(result.folder / ".lock"):
        assert train("--resume", "never").status == 2
    assert "is in use by another process" in capsys.readouterr().err
    assert not result.folder.with_name("run.1").exists()


def test_batch_norm_options_are_refused_for_a_model_without_it(train, capsys):
    assert train("--batch-norm", "sync").status == 2
    assert "--batch-norm sync has no effect: lenet has no batch norm" in capsys.readouterr().err


def test_changed_data_are_refused_on_resume(train, capsys, tmp_path, folders, monkeypatch):
    from helpers.runs import copy_tree, stop_after

    root = copy_tree(folders, tmp_path / "set")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        train("--data", str(root))
    (root / "train/cat/0000.png").unlink()
    assert train("--data", str(root)).status == 2
    assert "restore the data, or use another --output-dir" in capsys.readouterr().err


def test_the_launchers_precision_counts_unless_ours_is_given(train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(name="a").json("config.json")["config"]["mixed_precision"] == "bf16"
    assert train("--mixed-precision", "no", name="b").json("config.json")["config"]["mixed_precision"] == "no"


def test_the_launchers_compiler_is_ours_and_in_the_record_unless_ours_is_refused(train, monkeypatch, data_dir):
    compiled = []
    monkeypatch.setattr("cifar_dist.training.state.compile_model", lambda *_: compiled.append("ours"))
    monkeypatch.setattr("torch.compile", lambda *_, **__: pytest.fail("Accelerate compiles by itself"))
    for options, expected in (((), True), (("--no-compile",), False)):
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
        run = train("--steps", "1", *options, name=f"run{expected}")
        assert run.json("config.json")["config"]["compile"] is expected
    assert compiled == ["ours"]
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert evaluate.main(["--checkpoint", str(run.folder), "--data-dir", str(data_dir)]) == 0


@pytest.mark.parametrize(("bf16", "taken"), [(True, "bf16"), (False, "no")])
def test_auto_takes_the_precision_that_the_processor_has_and_keeps_to_it(train, monkeypatch, bf16, taken):
    from helpers.runs import stop_after

    monkeypatch.setattr("cifar_dist.runtime.accelerator.computes_in_bf16", lambda: bf16)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train("--mixed-precision", "auto").json("config.json")["config"]["mixed_precision"] == taken
    monkeypatch.setattr("cifar_dist.runtime.accelerator.computes_in_bf16", lambda: not bf16)  # goes on elsewhere
    gone_on = train("--mixed-precision", "auto")
    assert gone_on.status == 0
    assert gone_on.json("config.json")["config"]["mixed_precision"] == taken
    assert train("--mixed-precision", taken, name="asked").weights() == gone_on.weights()


def help_of(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as error:
        train_command.main([*argv])
    assert error.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_lists_the_everyday_options_and_help_all_every_one(capsys):
    short, whole = help_of(capsys, "--help"), help_of(capsys, "--help-all")
    options = [flag(f.name) for f in fields(TrainConfig)]
    listed = [option for option in options if f" {option} " in short]
    assert set(listed) == {flag(name) for name in GROUPS["everyday options"]}
    assert f"--help-all explains the other {len(options) - len(listed)} options" in short
    assert all(f" {option} " in whole or f" {option}, " in whole for option in options)
    for line in (short, whole):
        assert "resnet110" in line and "he2016" in line and "cutmix" in line


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], ["over the run [cosine]", "[0.0005]", "in [0, 1) [0.02]", "training images [", "crop flip]"]),
        (
            ["--recipe", "he2016"],
            ["[0.0001]", "over the run [multistep]", "optimizer steps, in place of --epochs [64000]"],
        ),
        (["--model=lenet", "--recipe=li2024"], ["learning rate [0.001]", "What recipe li2024 has for lenet"]),
    ],
)
def test_help_shows_the_defaults_that_are_in_force(capsys, argv, shown):
    text = help_of(capsys, *argv, "--help-all")
    assert [part for part in shown if part.lower() not in text.lower()] == []


def test_help_of_what_is_not_there_is_one_line(capsys):
    assert train_command.main(["--help", "--model", "resnet81"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown model 'resnet81'")


# ---- eval.py


def test_evaluating_a_run_again_gives_the_same_integers(train, data_dir, capsys):
    result = train("--limit-eval", "80")
    tested = result.json("summary.json")["test"]
    for name in ("", "model.safetensors"):
        options = ["--checkpoint", str(result.folder / name), "--data-dir", str(data_dir), "--limit-eval", "80"]
        assert evaluate.main(options) == 0
        written = result.json("eval-test-80-images.json")
        assert written["confusion_matrix"] == tested["confusion_matrix"]
        assert written["loss"] == tested["loss"]
    assert "all" in capsys.readouterr().out


def test_evaluating_uses_the_precision_the_run_had(train, data_dir):
    result = train("--mixed-precision", "bf16")
    AcceleratorState._reset_state(True)
    assert evaluate.main(["--checkpoint", str(result.folder), "--data-dir", str(data_dir), "--threads", "1"]) == 0
    assert result.json("eval-test.json")["loss"] == result.json("summary.json")["test"]["loss"]


def test_evaluating_on_validation_gives_the_best_validation_line(train, data_dir, tmp_path):
    result = train()
    output = tmp_path / "val.json"
    options = ["--split", "val", "--output", str(output), "--data-dir", str(data_dir)]
    assert evaluate.main(["--checkpoint", str(result.folder), *options]) == 0
    assert json.loads(output.read_text())["accuracy"] == result.json("summary.json")["val"]["accuracy"]


def test_what_eval_is_given_wrong_is_one_line_and_status_2(train, data_dir, tmp_path, capsys):
    result = train("--val-fraction", "0", "--steps", "2")
    (tmp_path / "notes.safetensors").write_text("no weights")
    (tmp_path / "nothing").mkdir()
    capsys.readouterr()
    for options, message in [
        ([], "--checkpoint is required"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
        (["--checkpoint", str(tmp_path / "nothing")], "holds no model.safetensors"),
        (["--checkpoint", str(tmp_path / "notes.safetensors")], "is not a weights file"),
        (["--checkpoint", str(result.folder), "--split", "val"], "no validation split; use --split test"),
        (["--checkpoint", str(result.folder), "--split", "train"], "unknown --split 'train'"),
        (["--checkpoint", str(result.folder), "--data", "cifar"], "unknown data set 'cifar'"),
        (["--checkpoint", str(result.folder), "--output", "no/such/x.json"], "there is no folder no/such"),
        (["--checkpoint", str(result.folder), "--output", "/dev/null"], "--output /dev/null is no regular file"),
        (["--checkpoint", str(result.folder), "--output", str(tmp_path)], "is a folder, which would not be replaced"),
    ]:
        assert evaluate.main([*options, "--data-dir", str(data_dir)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line


def test_a_run_outlives_whoever_reads_what_it_says(folders, data_dir, tmp_path):
    options = ["--model", "lenet", "--epochs", "3", "--batch-size", "32", "--log-every", "1", "--threads", "1"]
    where = ["--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "run")]
    command = [sys.executable, "train.py", *options, *where]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout and run.stdout.readline()
    run.stdout.close()
    assert run.wait(600) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"
    with Path("/dev/full").open("w") as full:
        where[-1] = str(tmp_path / "other")
        assert (
            subprocess.run(
                [sys.executable, "train.py", *options, *where], cwd=ROOT, stdout=full, check=False
            ).returncode
            == 0
        )
    assert json.loads((tmp_path / "other/summary.json").read_text())["status"] == "finished"


def test_names_that_are_no_utf8_work_in_every_place_and_locale(folders, tmp_path, monkeypatch):
    data, run = tmp_path / os.fsdecode(b"d\xe9"), tmp_path / os.fsdecode(b"r\xe9")
    data.symlink_to(folders)
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONUTF8", "0")
    where = ["--data", data, "--data-dir", tmp_path / os.fsdecode(b"c\xe9")]
    small = ["--model", "lenet", "--steps", "2", "--batch-size", "8", "--threads", "1", "--wandb", "disabled"]
    for command in (
        ["train.py", *small, *where, "--output-dir", run],
        ["eval.py", "--checkpoint", run, *where],
        ["-m", "cifar_dist", "report", run],
        ["-m", "cifar_dist", "compare", run],
        ["-m", "cifar_dist", "verify", run],
    ):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), (command, done)
        assert b"no pictures" not in done.stdout
    assert len(list((run / "plots").iterdir())) > 3


@pytest.mark.parametrize("words", [["models"], ["recipes"], ["compare", "RUN"], []])
def test_a_terminal_without_our_characters_is_no_error(train, words):
    run = train("--steps", "2")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    words = [str(run.folder) if word == "RUN" else word for word in words]
    command = [sys.executable, "-m", "cifar_dist", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 3


@pytest.mark.parametrize(
    "argv", ["--lr 0.1 --lr 0.2", "--nesterov --no-nesterov", "--augment crop --augment flip", "--lr=0.1 --lr 0.2"]
)
def test_an_option_that_is_given_twice_has_one_value_or_is_refused(train, capsys, argv):
    assert train(*argv.split()).status == 2
    assert "is given twice, as " in capsys.readouterr().err
    assert train("--lr", "0.1", "--lr=1e-1", "--steps", "1").status == 0


def test_a_folder_of_runs_is_said_to_be_one(train, tmp_path, capsys):
    train("--steps", "1", name="runs/b")
    train("--steps", "1", name="runs/a")
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(tmp_path / "runs")]) == 2
    assert f"is a folder of 2 runs; give one of them, such as {tmp_path}/runs/a" in capsys.readouterr().err


def test_a_run_of_fewer_images_is_evaluated_on_all_and_that_is_said(train, data_dir, capsys):
    run = train("--steps", "1", "--limit-eval", "20")
    for options, said in (([], True), (["--limit-eval", "40"], False)):
        capsys.readouterr()
        assert evaluate.main(["--checkpoint", str(run.folder), "--data-dir", str(data_dir), *options]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert ("the run itself counted 20 images; here all 100 count" in out) == said


@pytest.mark.parametrize("command", ["train.py --model lenet", "eval.py nowhere", "-m cifar_dist compare nowhere"])
def test_ctrl_c_while_packages_are_imported_is_one_line_from_one_process(command, tmp_path):
    # As numpy does it: an exception within an import comes out of it as another one.
    package = "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(9)\n"
    (tmp_path / "torch.py").write_text(package + "except BaseException:\n    raise RecursionError from None\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for rank, said in (("", True), ("0", True), ("1", False)):
        ranks = {"RANK": rank} if rank else {}
        done = subprocess.run(
            [sys.executable, *command.split()], env=environment | ranks, cwd=ROOT, capture_output=True, text=True
        )
        line = "interrupted before there was anything to save\n" * said
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
