"""Several real processes: the same samples, pixels, weights and integers on every world size, and no hang."""

import json
import subprocess
import time
from collections.abc import Callable

import pytest
import torch
from helpers.runs import ROOT, Result, torchrun, untimed
from safetensors.torch import load

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.models import MODELS
from cifar_dist.runtime import collectives

WORLD_SIZES = (1, 2, 3, 4, 7)
LENET = "--model lenet --batch-size 32 --schedule constant --warmup 0 --log-every 4"
# A ReLU whose input lies within rounding of zero may switch, which moves a weight by a share of lr: so lr is small.
# A ResNet is chaotic: one unit in the last place of one weight grows to 8e-6 in eight steps at lr 1e-3, to 3e-7 at 1e-4.
RESNET = "--model resnet20 --limit-eval 40 --schedule constant --warmup 0"
JOBS = {
    # 193 training images: each epoch's last batch holds one, so all ranks but one have none.
    "lenet": f"{LENET} --lr 0.001 --steps 40 --limit-train 193 --ema-decay 0.9",
    "accumulated": f"{LENET} --lr 0.001 --steps 12 --micro-batch-size 3",
    "compressed": f"{LENET} --lr 0.001 --steps 12 --gradient-compression bf16",
    # 216 images in batches of 80: the last one of an epoch has 9 of 12 shards.
    "exact resnet": f"{RESNET} --batch-size 80 --limit-train 216 --lr 0.1 --steps 20 --exact-shards 12 --ema-decay 0.9",
    "exact lenet": f"{LENET} --lr 0.1 --steps 40 --limit-train 193 --exact-shards 7 --augment mixup --max-grad-norm 1",
    "exact bf16": f"{LENET} --lr 0.1 --steps 20 --exact-shards 7 --mixed-precision bf16",
    "exact mlp": "--model mlp --model-options width=64 dropout=0.4 --batch-size 32 --optimizer adamw --lr 0.001 --steps 20 "
    "--limit-train 193 --exact-shards 8",
    "process": f"{RESNET} --batch-size 72 --limit-train 216 --lr 0.0001 --steps 12",
    # SGD: Adam divides by the gradient's size, so that it makes a step of lr from one that is nothing but rounding.
    "dropout": "--model mlp --model-options width=64 dropout=0.4 --batch-size 32 --optimizer sgd --lr 0.001 --schedule constant "
    "--warmup 0 --augment crop flip rotate jitter cutmix --steps 20 --limit-train 193",
    "sync": f"{RESNET} --batch-size 72 --lr 0.0001 --steps 6 --limit-train 147 --batch-norm sync",
}
# Each model once, in two steps of which the second has two of three shards.
EVERY = {
    f"every {name}": f"--model {name} --batch-size 6 --limit-train 10 --steps 2 --exact-shards 3" for name in MODELS
}
TOLERANCE = {"lenet": 1e-5, "accumulated": 1e-5, "dropout": 1e-5, "sync": 1e-5}
EXACT = [name for name in JOBS if name.startswith("exact")]


@pytest.fixture(scope="module")
def jobs(folders, data_dir, tmp_path_factory) -> Callable[..., Result]:
    """Return a function that runs some JOBS on a world size, all in one set of processes, and their results by name."""
    base = tmp_path_factory.mktemp("jobs")

    def run(world_size: int, names: list[str], *, suffix: str = "", stop=None, start=0) -> dict[str, Result]:
        listed, results = [], {}
        for name in names:
            folder = base / f"{name}-{suffix or world_size}"
            record = folder.with_name(f"{folder.name}-seen-{start}")
            record.mkdir()
            argv = [
                *{**JOBS, **EVERY}[name].split(),
                "--data",
                str(folders),
                "--data-dir",
                str(data_dir),
                "--output-dir",
                str(folder),
            ]
            listed.append({"argv": [*argv, "--threads", "1"], "record": str(record), "stop": stop})
            results[name] = Result(0, folder)
        path = base / f"jobs-{world_size}-{suffix}-{start}.json"
        path.write_text(json.dumps(listed))
        torchrun(world_size, ["tests/helpers/worker.py", str(path)])
        return results

    return run


@pytest.fixture(scope="module")
def by_world_size(jobs) -> dict[int, dict[str, Result]]:
    return {size: jobs(size, list(JOBS) if size != 7 else ["lenet", *EXACT]) for size in WORLD_SIZES}


def seen(result: Result, start: int = 0) -> dict[int, list]:
    """What all ranks together saw: step -> sorted (epoch, place, digest of the pixels)."""
    steps: dict[int, list] = {}
    for path in result.folder.with_name(f"{result.folder.name}-seen-{start}").glob("rank-*.jsonl"):
        for line in path.open():
            step, samples = json.loads(line)
            steps.setdefault(step, []).extend(samples)
    return {step: sorted(samples) for step, samples in steps.items()}


def difference(a: Result, b: Result) -> float:
    """The largest |difference| of any parameter of the final weights."""
    x, y = load(a.weights()), load(b.weights())
    return max((x[name] - y[name]).abs().max().item() for name in x if "running" not in name and "num_" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_every_step_sees_the_same_samples_and_pixels(by_world_size, world_size):
    for name, result in by_world_size[world_size].items():
        alone = seen(by_world_size[1][name])
        assert seen(result) == alone
        assert len(alone) == len(set(alone)) > 0
    per_epoch = [len(s) for s in seen(by_world_size[world_size]["lenet"]).values()]
    assert per_epoch[:7] == [32] * 6 + [1]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_weights_do_not_depend_on_the_world_size(by_world_size, world_size):
    for name, tolerance in TOLERANCE.items():
        assert difference(by_world_size[world_size][name], by_world_size[1][name]) <= tolerance, name


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_exact_shards_make_every_bit_the_same(by_world_size, world_size, name):
    """Weights, running statistics and what counts them, the optimizer's state; losses, norms and accuracies."""
    ours, alone = (by_world_size[size][name] for size in (world_size, 1))
    assert ours.weights() == alone.weights()
    assert untimed(ours.metrics()) == untimed(alone.metrics())
    step = alone.json("summary.json")["step"]
    states = [torch.load(run.folder / f"checkpoints/step_{step:08d}/training.pt") for run in (ours, alone)]
    for part in ("model", "optimizer", "ema"):
        assert_equal(*(state[part] for state in states))


def assert_equal(a, b) -> None:
    """Assert that two nests of dicts, lists and tensors are the same in every bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict | list):
        assert len(a) == len(b)
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_equal(a[key], b[key])
    else:
        assert a == b


@pytest.mark.slow
def test_exact_shards_make_every_bit_of_every_model_the_same(jobs):
    alone, three = (jobs(size, list(EVERY)) for size in (1, 3))
    for name in EVERY:
        assert alone[name].weights() == three[name].weights(), name
        assert untimed(alone[name].metrics()) == untimed(three[name].metrics()), name


@pytest.mark.slow
def test_without_exact_shards_there_is_a_difference(by_world_size):
    """So that the test above could fail."""
    for name in ("lenet", "process"):
        assert difference(by_world_size[4][name], by_world_size[1][name]) > 0


@pytest.mark.slow
def test_synchronised_running_statistics_do_not_depend_on_the_world_size(by_world_size):
    one, four = (load(by_world_size[size]["sync"].weights()) for size in (1, 4))
    for name in one:
        if "running" in name:
            torch.testing.assert_close(four[name], one[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_logged_losses_and_counts_do_not_depend_on_the_world_size(by_world_size, world_size):
    ours, alone = (untimed(by_world_size[size]["lenet"].metrics()) for size in (world_size, 1))
    for a, b in zip(ours, alone, strict=True):
        assert (a["kind"], a["step"], a["samples"]) == (b["kind"], b["step"], b["samples"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.011)


@pytest.mark.slow
def test_evaluating_the_same_weights_gives_the_same_integers_and_loss_on_any_world_size(
    by_world_size, data_dir, tmp_path
):
    run = by_world_size[1]["exact resnet"]
    records = []
    for world_size in (1, 2, 3, 7):  # 100 images in blocks of 40: with 7 ranks four have none
        output = tmp_path / f"{world_size}.json"
        options = [
            "--checkpoint",
            str(run.folder),
            "--data-dir",
            str(data_dir),
            "--output",
            str(output),
            "--threads",
            "1",
            "--corruptions",
            "gaussian_noise",
            "motion_blur",
        ]
        torchrun(world_size, ["tests/helpers/eval_in_small_blocks.py", *options])
        records.append(json.loads(output.read_text()))
    assert records[0] == records[1] == records[2]
    assert records[0]["num_images"] == 100
    assert sum(records[0]["calibration"]["bin_images"]) == 100
    assert len(records[0]["corruptions"]["sets"]) == 10


@pytest.mark.slow
def test_a_signal_at_one_rank_stops_all_and_going_on_is_exact(jobs, by_world_size):
    names = ["lenet", "process", "compressed"]
    stopped = jobs(3, names, suffix="stopped", stop={"rank": 2, "step": 9})
    for result in stopped.values():
        summary = result.json("summary.json")
        assert (summary["status"], summary["signal"], summary["step"]) == ("interrupted", "SIGUSR1", 9)
    resumed = jobs(3, names, suffix="stopped", start=9)
    for name in names:
        whole = by_world_size[3][name]
        assert resumed[name].weights() == whole.weights()
        assert untimed(resumed[name].metrics()) == untimed(whole.metrics())
        assert seen(resumed[name]) | seen(resumed[name], start=9) == seen(whole)


@pytest.mark.slow
def test_going_on_with_other_numbers_of_processes_sees_the_same_samples_and_ends_at_the_same_weights(
    jobs, by_world_size
):
    names = ["lenet", *EXACT]
    jobs(4, names, suffix="moved", stop={"rank": 1, "step": 11})
    jobs(1, names, suffix="moved", stop={"rank": 0, "step": 17}, start=11)
    moved = jobs(2, names, suffix="moved", start=17)
    for name in names:
        alone = by_world_size[1][name]
        assert seen(moved[name]) | seen(moved[name], start=11) | seen(moved[name], start=17) == seen(alone)
        assert difference(moved[name], alone) < 1e-5
        if name in EXACT:
            assert moved[name].weights() == alone.weights()
            assert untimed(moved[name].metrics()) == untimed(alone.metrics())
        lines, expected = (untimed(r.metrics()) for r in (moved[name], alone))
        assert [(m["kind"], m["step"]) for m in lines] == [(m["kind"], m["step"]) for m in expected]
        for a, b in zip(lines, expected, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        starts = moved[name].json("config.json")["starts"]
        assert [(s["from_step"], s["world_size"]) for s in starts] == [(0, 4), (11, 1), (17, 2)]


GRADIENTS = """
import copy, sys
import torch
from cifar_dist.config import TrainConfig
from cifar_dist.exits import finish
from cifar_dist.runtime import collectives
from cifar_dist.runtime.accelerator import accelerate, join
from cifar_dist.training.state import build_state

config = TrainConfig(model="lenet", epochs=1, threads=1, device="cpu", gradient_compression="bf16")
join(config)
accelerator = accelerate(config)
state = build_state(config, 10, accelerator)
alone = copy.deepcopy(state.model)  # without DDP
for step in range(3):  # DDP changes its buckets after the first
    generator = torch.Generator().manual_seed(10 * step + collectives.rank())
    images = torch.randn(8, 3, 32, 32, generator=generator)
    for model in (state.wrapped, alone):
        model.zero_grad()
        model(images).logsumexp(1).sum().backward()
flat = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (state.model, alone)]
results, own = (collectives.gather_rows(gradients) for gradients in flat)  # (world, parameters) each
if collectives.rank() == 0:
    torch.save((results, own), sys.argv[1])
collectives.stop()
finish(0)
"""


@pytest.fixture(scope="module", params=[2, 3])
def gradients(request, tmp_path_factory) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients (world, parameters) that the ranks have after a compressed all-reduce, and each rank's own."""
    folder = tmp_path_factory.mktemp("gradients")
    (folder / "script.py").write_text(GRADIENTS)
    torchrun(request.param, [str(folder / "script.py"), str(folder / "gradients.pt")])
    return torch.load(folder / "gradients.pt")


@pytest.mark.slow
def test_a_compressed_gradient_is_the_mean_of_the_ranks_in_bf16_arithmetic(gradients):
    results, own = gradients
    world_size = len(own)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(results[0].bfloat16().float(), results[0])
    # Each rank's rounds to bf16 and is divided, which rounds again; every addition rounds. A rounding moves a number by
    # 2**-8 of itself at most.
    bound = (world_size + 1) * 2**-8 * own.abs().mean(0) * 1.05  # for products of errors
    exact = own.double().mean(0)
    assert ((results[0] - exact).abs() <= bound).all()
    assert (results[0] - exact).abs().max() > 1e-4 * exact.abs().max()
    if world_size == 2:  # a division without rounding and one addition, whatever the order
        halves = own.bfloat16().float() / 2
        assert torch.equal(results[0], halves.sum(0).bfloat16().float())


@pytest.mark.slow
def test_compression_does_nothing_but_round(by_world_size):
    for world_size in (2, 3, 4):
        assert 0 < difference(by_world_size[world_size]["compressed"], by_world_size[1]["compressed"]) < 1e-3


def test_on_one_process_compression_changes_nothing(train):
    plain, compressed = train(), train("--gradient-compression", "bf16", name="compressed")
    assert plain.status == compressed.status == 0
    assert compressed.json("config.json")["config"]["gradient_compression"] == "bf16"
    assert load(plain.weights()).keys() == load(compressed.weights()).keys()
    assert difference(plain, compressed) == 0


def test_a_run_keeps_its_compression(train, capsys):
    train()
    assert train("--gradient-compression", "bf16").status == 2
    assert "--gradient-compression" in capsys.readouterr().err


def test_compression_without_an_all_reduce_of_ddp_is_refused():
    TrainConfig(epochs=1, batch_norm="sync", gradient_compression="bf16")
    with pytest.raises(UserError, match="--gradient-compression bf16 has no effect with --exact-shards"):
        TrainConfig(epochs=1, exact_shards=8, gradient_compression="bf16")


ONE_RANK_FAILS = """
import os, sys
from cifar_dist.cli.train import main
from cifar_dist.errors import UserError
from cifar_dist.models import MODELS
from cifar_dist.training import build
load = build.load_dataset
def load_dataset(*where):
    if os.environ["RANK"] == "1":
        raise {error}
    return load(*where)
build.load_dataset = load_dataset
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("UserError('no data on this node')", "error: no data on this node"),
        ("RuntimeError('a bug')", "RuntimeError: a bug"),
    ],
)
def test_an_error_on_one_rank_ends_all_without_a_hang(folders, data_dir, tmp_path, error, expected):
    script = tmp_path / "fails.py"
    script.write_text(ONE_RANK_FAILS.replace("{error}", error))
    options = [*LENET.split(), "--steps", "5", "--data", str(folders), "--data-dir", str(data_dir)]
    started = time.monotonic()
    result = torchrun(3, [str(script), *options, "--output-dir", str(tmp_path / "run")], check=False)
    assert result.returncode == 1  # the launcher's
    assert time.monotonic() - started < 120
    assert result.stderr.count(expected) == 1
    if "UserError" in error:
        assert "exitcode  : 2" in result.stderr
        assert 'Traceback (most recent call last):\n  File "' + str(script) not in result.stderr


def test_a_difference_between_ranks_is_named(monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)

    def gather(values, value):
        values[:] = [value, "other"]

    monkeypatch.setattr(collectives.dist, "all_gather_object", gather)
    with pytest.raises(UserError, match="the data differs between processes: mine on rank 0, other on rank 1"):
        collectives.check_equal("mine", "the data")


def test_helpers_do_nothing_on_one_process():
    vector = torch.arange(3.0)
    assert collectives.sum_across_ranks(vector) is vector
    assert collectives.gather_rows(vector).shape == (1, 3)
    assert collectives.on_main(lambda: 5) == collectives.on_all(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        collectives.on_main(lambda: 1 / 0)


def test_only_collectives_and_the_doctors_wire_talk_to_torch_distributed():
    command = ["git", "grep", "-lE", r"torch\.distributed($|[^.]|\.[^r])|import dist\b", "--", "cifar_dist/*.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    assert found.stdout.split() == ["cifar_dist/doctor/wire.py", "cifar_dist/runtime/collectives.py"]
