"""The loops, in one process: what a step computes, and that stopping and going on changes nothing."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from helpers.runs import ROOT, copy_tree, stop_after, untimed
from safetensors.torch import load

from cifar_dist.cli import evaluate
from cifar_dist.cli.train import main
from cifar_dist.data import load_dataset
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import epoch_order
from cifar_dist.models import build_model
from cifar_dist.record import checkpoint
from cifar_dist.runtime import accelerator
from cifar_dist.training import engine, evaluation, preemption

NORMS = ["--model", "resnet20", "--limit-train", "64", "--limit-eval", "20", "--epochs", "2"]


def test_a_run_leaves_the_folder_the_design_promises(train):
    result = train(pictures=True)
    assert result.status == 0
    assert {"config.json", "metrics.jsonl", "summary.json", "model.safetensors", "checkpoints", "plots"} <= {
        p.name for p in result.folder.iterdir()
    }
    summary, config = result.json("summary.json"), result.json("config.json")
    assert summary["status"] == "finished"
    assert torch.tensor(summary["test"]["confusion_matrix"]).sum() == summary["test"]["num_images"] == 100
    assert set(summary["test"]["per_class_accuracy"]) == {"bird", "cat", "dog", "ship"}
    assert config["config"]["batch_size"] == 32
    assert config["dataset"]["fingerprint"]
    assert config["starts"][-1]["world_size"] == 1
    assert config["starts"][-1]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert [line["step"] for line in result.metrics("train")] == [3, 6, 7, 10, 13, 14, 17, 20, 21]
    assert [line["step"] for line in result.metrics("val")] == [7, 14, 21]
    assert [line["kind"] for line in result.metrics()][-1] == "test"
    last = result.metrics("train")[-1]
    assert (last["samples"], last["epoch"]) == (3 * 216, 3.0)
    assert last.keys() >= {"loss", "accuracy", "lr", "images_per_second", "seconds"}


def test_the_best_weights_on_validation_are_kept_and_tested(train):
    result = train("--lr", "0.05", "--epochs", "6", "--keep-checkpoints", "1")
    val = result.metrics("val")
    best = max(val, key=lambda line: (line["accuracy"], -line["step"]))
    assert result.json("summary.json")["best_step"] == best["step"] == result.metrics("test")[0]["step"]
    kept = result.folder / f"checkpoints/step_{best['step']:08d}/model.safetensors"
    assert kept.read_bytes() == result.weights()
    assert len(list((result.folder / "checkpoints").glob("step_*"))) <= 2


@pytest.mark.parametrize("micro_batch_size", ["32", "5", "1"])
def test_accumulation_takes_the_same_step_as_the_whole_batch(train, micro_batch_size):
    plain = ["--steps", "10", "--val-fraction", "0", "--schedule", "constant", "--warmup", "0", "--lr", "0.01"]
    whole = load(train(*plain, name="whole").weights())
    cut = load(train(*plain, "--micro-batch-size", micro_batch_size, name="cut").weights())
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=1e-6)


def test_a_run_equals_the_loop_written_out(train, folders, data_dir):
    """The independent truth: torch's own modules, the mean over each batch, a short last batch included."""
    options = "--val-fraction 0 --augment none --epochs 2 --batch-size 50 --no-nesterov --lr 0.02 --weight-decay 0.1"
    more = "--label-smoothing 0.1 --max-grad-norm 0.5 --schedule cosine --warmup 0 --decay-all --seed 3"
    result = train(*options.split(), *more.split())
    dataset = load_dataset(str(folders), data_dir)
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) for s in (dataset.mean, dataset.std))
    images = ((dataset.train.images.double() / 255 - mean) / std).float()
    torch.manual_seed(3)
    model = build_model("lenet", 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for epoch in range(2):
        for index in epoch_order(3, epoch, 240).split(50):
            loss = F.cross_entropy(model(images[index]), dataset.train.targets[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
    trained = load(result.weights())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-6)
    assert result.metrics("train")[-1]["accuracy"] > 0  # counted from the same logits


def test_a_training_line_is_the_mean_over_exactly_its_images(train, folders, data_dir):
    """Weights that hardly move tell what each image cost; the lines of an epoch's end are over a short last batch."""
    options = "--val-fraction 0 --augment none --epochs 2 --batch-size 50 --lr 1e-30 --weight-decay 0 --warmup 0"
    result = train(*options.split(), "--log-every", "3")
    dataset = load_dataset(str(folders), data_dir)
    images = Normalize(dataset.mean, dataset.std, torch.device("cpu"))(dataset.train.images)
    model = build_model("lenet", 4)
    model.load_state_dict(load(result.weights()))
    with torch.no_grad():
        logits = model(images)
    losses = F.cross_entropy(logits, dataset.train.targets, reduction="none").double()
    right = (logits.argmax(1) == dataset.train.targets).double()
    seen = torch.cat([epoch_order(0, epoch, 240) for epoch in range(2)])
    lines, before = result.metrics("train"), 0
    assert [line["samples"] for line in lines] == [150, 240, 390, 480]  # steps of 50, 50, 50 and 50, 40 images
    for line in lines:
        places, before = seen[before : line["samples"]], line["samples"]
        assert line["loss"] == pytest.approx(losses[places].mean().item(), rel=1e-6)
        assert line["accuracy"] == pytest.approx(right[places].mean().item(), abs=1e-12)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_every_stop_signal_leaves_a_checkpoint_and_status_75(train, monkeypatch, number):
    stop_after(monkeypatch, 4, number)
    result = train()
    assert result.status == 75
    assert result.json("summary.json")["status"] == "interrupted"
    assert result.json("summary.json")["signal"] == number.name
    assert (result.folder / "checkpoints/step_00000004/manifest.json").exists()


def test_an_interrupted_worker_of_a_launcher_exits_with_0(train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    stop_after(monkeypatch, 4)
    result = train()
    assert result.status == 0
    assert result.json("summary.json")["status"] == "interrupted"


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "adamw", "--lr", "0.01", "--ema-decay", "0.9", "--micro-batch-size", "5"],
        [*NORMS, "--ema-decay", "0.9", "--micro-batch-size", "9"],
        [*NORMS, "--exact-shards", "4", "--max-grad-norm", "1"],
        ["--mixed-precision", "bf16"],
        ["--optimizer", "muon", "--lr", "0.02", "--schedule", "linear", "--weight-decay", "0.001"],
        # several steps are augmented at once, and the last one of an epoch holds a single image
        ["--batch-size", "5", "--epochs", "2", "--limit-train", "41", "--augment", "shift", "alternate", "cutmix"],
        ["--val-fraction", "0", "--drop-last", "--schedule", "one-cycle", "--warmup", "0.2"],
        [*NORMS, "--early-size", "20"],
    ],
)
def test_stopping_at_any_step_and_going_on_changes_no_bit_and_no_line(train, monkeypatch, options):
    whole = train(*options, name="whole")
    steps = whole.json("summary.json")["total_steps"]
    for step in (1, steps // 2, steps - 1):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            stopped = train(*options, name=f"stopped-{step}")
            assert stopped.status == 75
        resumed = train(*options, name=f"stopped-{step}")
        assert resumed.status == 0
        assert resumed.weights() == whole.weights()
        assert untimed(resumed.metrics()) == untimed(whole.metrics())


@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "0.01", "--nesterov"],
        ["--optimizer", "adamw", "--lr", "0.001"],
        ["--optimizer", "muon", "--lr", "0.02"],
        [*NORMS, "--exact-shards", "4"],
    ],
)
def test_going_on_from_a_checkpoint_of_another_layout_in_memory_changes_no_bit(train, monkeypatch, options):
    whole = train(*options, name="whole")
    step = whole.json("summary.json")["total_steps"] // 2
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        stopped = train(*options, name="stopped")
    folder = stopped.folder / "checkpoints"
    files = checkpoint.load(checkpoint.folder_for(folder, step)).files
    content = torch.load(io.BytesIO(files["training.pt"]), weights_only=True)
    moved = 0
    for values in (content["model"], *content["optimizer"]["state"].values()):
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                moved += not value.is_contiguous()
                values[name] = value.contiguous()
    assert moved > 1  # filters and their momentum were saved as they lie in memory, by channels
    buffer = io.BytesIO()
    torch.save(content, buffer)
    checkpoint.save(folder, step, files | {"training.pt": buffer.getvalue()})
    resumed = train(*options, name="stopped")
    assert resumed.weights() == whole.weights()
    assert untimed(resumed.metrics()) == untimed(whole.metrics())


def test_going_on_from_a_broken_newest_checkpoint_uses_the_one_before_and_says_so(train, monkeypatch, capsys):
    whole = train(name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        stopped = train(name="stopped")
    path = stopped.folder / "checkpoints/step_00000010/training.pt"
    path.write_bytes(path.read_bytes()[:-1])
    resumed = train(name="stopped")
    out = capsys.readouterr().out
    assert "skipped a broken checkpoint" in out
    assert "going on from step 7" in out
    assert resumed.weights() == whole.weights()
    assert untimed(resumed.metrics()) == untimed(whole.metrics())


def test_a_finished_run_is_not_trained_again(train, monkeypatch, capsys):
    first = train()
    before = (first.folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(engine, "train_step", lambda *_: pytest.fail("trained"))
    assert train().status == 0
    assert "is already finished" in capsys.readouterr().out
    assert (first.folder / "metrics.jsonl").read_bytes() == before


def test_never_starts_over_and_loses_nothing(train):
    first = train("--seed", "1")
    weights = first.weights()
    second = train("--seed", "2", "--resume", "never")
    assert second.weights() != weights
    assert (first.folder.with_name("run.1") / "model.safetensors").read_bytes() == weights


def test_a_run_can_be_forked_from_an_earlier_checkpoint(train):
    whole = train("--keep-checkpoints", "9")
    source = whole.folder / "checkpoints/step_00000007"
    fork = train("--keep-checkpoints", "9", "--resume", str(source), name="fork")
    assert fork.weights() == whole.weights()
    assert untimed(fork.metrics()) == untimed(whole.metrics())
    assert [start["from_step"] for start in fork.json("config.json")["starts"]] == [0, 7]


@pytest.mark.parametrize("options", [["--seed", "5"], ["--mixed-precision", "bf16", "--deterministic"]])
def test_a_resumed_run_needs_only_its_folder(train, monkeypatch, options):
    whole = train(*options, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        stopped = train(*options)
    AcceleratorState._reset_state(True)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)  # the run had 1, and sums over other shares would round differently
    assert main(["--resume", str(stopped.folder)]) == 0
    assert stopped.weights() == whole.weights()
    assert torch.are_deterministic_algorithms_enabled() == ("--deterministic" in options)


def test_the_number_of_threads_that_a_run_chose_itself_is_kept_when_it_goes_on(train, monkeypatch):
    monkeypatch.setattr(accelerator, "default_threads", lambda: 3)
    whole, same = train("--threads", "none", name="whole"), train("--threads", "3", name="same")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        stopped = train("--threads", "none", name="stopped")
    monkeypatch.setattr(accelerator, "default_threads", lambda: 1)  # as on another machine, or in a smaller job
    resumed = train("--threads", "none", name="stopped")
    assert [start["threads_per_process"] for start in resumed.json("config.json")["starts"]] == [3, 3]
    assert stopped.weights() == same.weights() == whole.weights()
    monkeypatch.setattr(accelerator, "default_threads", lambda: 64)
    tiny = train("--threads", "none", "--batch-size", "4", "--steps", "1", name="tiny")
    assert tiny.json("config.json")["starts"][0]["threads_per_process"] == 1


def test_what_is_refused_on_resume_deletes_nothing(train, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 16)
        stopped = train()
    before = {p: p.read_bytes() for p in stopped.folder.rglob("*") if p.is_file()}
    assert train("--seed", "2").status == 2
    assert train("--resume", str(stopped.folder / "checkpoints/step_00000014")).status == 2
    assert "going back in place would lose what came after; name a new --output-dir" in capsys.readouterr().err
    newest = stopped.folder / "checkpoints/step_00000016/training.pt"
    for path in stopped.folder.glob("checkpoints/*/manifest.json"):
        path.write_text("damaged")
    assert train().status == 2
    assert "is whole" in capsys.readouterr().err
    assert newest.exists()
    for path, content in before.items():
        path.write_bytes(content)
    assert train().weights() == train(name="whole").weights()


def contents(folder: Path) -> dict[Path, bytes | None]:
    """What lies under a folder, without locks."""
    paths = [path for path in sorted(folder.rglob("*")) if path.name != ".lock"]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seed 5", "has --seed 0, not 5"),
        ("--model resnet20", "has --model lenet, not resnet20"),
        ("--batch-size 500", "has --batch-size 32, not 500"),
    ],
)
def test_a_refused_copy_of_a_run_leaves_no_folder_and_the_run_as_it_was(
    train, tmp_path, monkeypatch, capsys, options, message
):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        source = train(name="source").folder
    before = contents(tmp_path)
    assert train("--resume", str(source), *options.split(), name="made/for/it").status == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_what_cannot_start_after_it_was_copied_leaves_no_copy(train, tmp_path, monkeypatch, capsys, folders):
    images = copy_tree(folders, tmp_path / "images")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        source = train("--data", str(images), name="source").folder
    (images / "train/bird/0000.png").unlink()
    before = contents(tmp_path)
    for name in ("new", "source"):
        assert train("--data", str(images), "--resume", str(source), name=name).status == 2
        assert "restore the data, or use another --output-dir" in capsys.readouterr().err
        assert contents(tmp_path) == before


def test_a_fork_that_is_started_again_goes_on(train, monkeypatch):
    whole = train("--keep-checkpoints", "9")
    fork = ["--keep-checkpoints", "9", "--resume", str(whole.folder / "checkpoints/step_00000007")]
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        assert train(*fork, name="fork").status == 75
    again = train(*fork, name="fork")
    assert [start["from_step"] for start in again.json("config.json")["starts"]] == [0, 7, 12]
    assert again.weights() == whole.weights()


def test_a_diverged_run_fails_on_one_line_and_keeps_what_was_good(train, capsys):
    result = train("--lr", "1e30", "--schedule", "constant", "--warmup", "0")
    assert result.status == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("failed: the loss became nan or infinite")
    assert result.json("summary.json")["status"] == "failed"
    assert all("nan" not in json.dumps(m).lower() for m in result.metrics())


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(train, monkeypatch, capsys):
    from cifar_dist.record import checkpoint

    save, count = checkpoint.save, []

    def fill(*arguments):
        count.append(1)
        if len(count) == 2:
            raise OSError(28, "No space left on device")
        save(*arguments)

    whole = train(name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", fill)
        result = train()
    assert result.status == 1
    assert "No space left on device" in capsys.readouterr().err
    assert train().weights() == whole.weights()


def test_broken_weights_found_by_validation_fail_on_one_line(train, capsys):
    result = train("--lr", "1e30", "--schedule", "constant", "--warmup", "0", "--batch-size", "216")
    assert result.status == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("failed: the weights give a loss that is nan or infinite")


def test_evaluation_in_many_blocks_counts_every_image_once(train, monkeypatch, data_dir):
    one = train(name="one")
    monkeypatch.setattr(evaluation, "EVAL_BLOCK", 7)
    options = ["--checkpoint", str(one.folder), "--data-dir", str(data_dir), "--threads", "1"]
    assert evaluate.main(options) == 0
    many = one.json("eval-test.json")
    assert many["num_images"] == 100
    assert many["confusion_matrix"] == one.json("summary.json")["test"]["confusion_matrix"]
    assert many["loss"] == pytest.approx(one.json("summary.json")["test"]["loss"], rel=1e-6)


@pytest.mark.parametrize("options", [["--test-fraction", "0.3"], ["--folds", "4", "--fold", "3"]])
def test_evaluating_a_run_again_uses_the_splits_it_was_trained_with(train, data_dir, options):
    result = train("--epochs", "1", *options)
    where = ["--checkpoint", str(result.folder), "--data-dir", str(data_dir), "--threads", "1"]
    for kind in ("test", "val"):
        assert evaluate.main([*where, "--split", kind]) == 0
        again = result.json(f"eval-{kind}.json")
        assert {k: again[k] for k in result.json("summary.json")[kind]} == result.json("summary.json")[kind]


def test_a_run_may_leave_the_test_images_alone(train, capsys):
    result = train("--no-test")
    assert result.json("summary.json")["test"] is None
    assert result.metrics("test") == []
    assert result.json("summary.json")["val"]["accuracy"] > 0
    assert train("--no-test").status == 0
    assert "is already finished" in capsys.readouterr().out


def test_numbers_too_small_to_compute_with_fast_are_zero_on_every_thread():
    code = """
import sys, torch
from cifar_dist.config import TrainConfig
from cifar_dist.runtime.accelerator import accelerate
accelerate(TrainConfig(epochs=1, threads=4, device="cpu"))
tiny = torch.full((1_000_000,), 70_000, dtype=torch.int32).view(torch.float32)  # 1e-40 each
sys.exit(int(torch.mul(tiny, 0.5).view(torch.int32).any()))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("model", ["lenet", "resnet20"])
def test_on_a_gpu_stopping_and_going_on_changes_no_bit(train, monkeypatch, model, precision):
    options = [
        "--model",
        model,
        "--mixed-precision",
        precision,
        "--deterministic",
        "--ema-decay",
        "0.9",
        "--max-grad-norm",
        "1",
    ]
    whole = train(*options, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        assert train(*options, name="stopped").status == 75
    resumed = train(*options, name="stopped")
    assert resumed.weights() == whole.weights()
    assert untimed(resumed.metrics()) == untimed(whole.metrics())


def test_checkpoints_come_due_between_validations(train, monkeypatch):
    """Each vote finds one due; they are no validations, and change no step."""
    monkeypatch.setattr(preemption, "VOTE_EVERY_S", 0.0)
    often = train("--checkpoint-minutes", "0", "--keep-checkpoints", "99", "--epochs", "1", name="often")
    rarely = train("--epochs", "1", name="rarely")
    assert checkpoint.saved_steps(often.folder / "checkpoints") == list(range(1, 8))
    assert untimed(often.metrics()) == untimed(rarely.metrics()) and often.weights() == rarely.weights()


def test_the_gradient_norm_is_that_of_the_step_taken(train):
    options = ["--optimizer", "sgd", "--lr", "0.01", "--momentum", "0", "--no-nesterov", "--weight-decay", "0"]
    options += ["--schedule", "constant", "--warmup", "0", "--val-fraction", "0", "--log-every", "1", "--no-test"]
    before, after = (train(*options, "--steps", steps, name=steps) for steps in ("3", "4"))
    old, new = (safetensors.torch.load(result.weights()) for result in (before, after))
    moved = sum(float((new[name].double() - old[name].double()).square().sum()) for name in old) ** 0.5
    assert after.metrics("train")[-1]["gradient_norm"] == pytest.approx(moved / 0.01, rel=1e-4)


def test_measuring_the_gradient_changes_nothing(train):
    rarely, often = (train("--log-every", every, "--epochs", "2", name=every) for every in ("100", "1"))
    assert rarely.weights() == often.weights()


def test_a_copy_of_a_run_is_another_run_for_weights_and_biases(train):
    first = train("--epochs", "1")
    (first.folder / "wandb.json").write_text('{"id": "abc"}')
    step = next((first.folder / "checkpoints").glob("step_*"))
    copy = train("--resume", str(step), "--epochs", "1", "--no-test", name="copy").folder
    assert (first.folder / "wandb.json").exists() and not (copy / "wandb.json").exists()
    assert (first.folder / "predictions-test.npz").exists() and not (copy / "predictions-test.npz").exists()


def test_data_that_were_moved_are_the_same_data_and_others_are_not(train, folders, tmp_path, monkeypatch, capsys):
    first = copy_tree(folders, tmp_path / "first")
    whole = train("--data", str(first), name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        train("--data", str(first), name="moved")
    second = first.rename(tmp_path / "second")
    assert train("--data", str(first), name="moved").status == 2
    assert f"--data {first} is not a folder" in capsys.readouterr().err
    moved = train("--data", str(second), name="moved")
    assert moved.status == 0
    ours, theirs = (safetensors.torch.load(run.weights()) for run in (moved, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (second / "train/dog/0000.png").unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        train(name="other")
    assert train("--data", str(second), name="other").status == 2
    assert "was trained on" in capsys.readouterr().err


def test_a_checkpoint_is_found_from_inside_and_refused_under_another_name(train, tmp_path, monkeypatch, capsys):
    run = train("--keep-checkpoints", "9")
    step = run.folder / "checkpoints/step_00000007"
    copied = copy_tree(step, tmp_path / "best")
    assert train("--resume", str(copied), name="new").status == 2
    assert f"--resume {copied} is a checkpoint under another name" in capsys.readouterr().err
    monkeypatch.chdir(step)
    again = train("--resume", ".", name="fork")
    assert again.status == 0 and again.weights() == run.weights()
