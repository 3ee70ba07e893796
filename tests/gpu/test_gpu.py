"""What a GPU may do otherwise than a CPU. Tests of a single device run on both, so that their own logic is tried everywhere."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from helpers.runs import Result, stop_after, torchrun, untimed
from safetensors.torch import load
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cifar_dist import load_model
from cifar_dist.cli import evaluate
from cifar_dist.config import TrainConfig
from cifar_dist.data import Split
from cifar_dist.inputs.augment import AUGMENTATIONS, MIXES
from cifar_dist.inputs.batches import Batch, Batches
from cifar_dist.inputs.normalize import Normalize
from cifar_dist.inputs.plan import BatchPlan, cut, epoch_order
from cifar_dist.models import MODELS, build_model
from cifar_dist.models.dropout import Dropout
from cifar_dist.optim.optimizer import build_optimizer, set_lr
from cifar_dist.runtime import accelerator
from cifar_dist.training import captured, engine, evaluation
from cifar_dist.training.state import build_state, restore, snapshot, to_bytes
from cifar_dist.training.weights import pack_weights

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
each_device = pytest.mark.parametrize("device", ["cpu", CUDA])
BETWEEN_PIXELS = {"rotate", "trivial"}  # torch's `grid_sample` adds its four products up fused on a GPU, not on a CPU
ON = {"cpu": ("--device", "cpu"), "cuda": ("--device", "gpu")}


@pytest.fixture
def _whole_float32(monkeypatch):
    """No TF32, which torch lets convolutions use by default: with it they keep 10 bits of each factor."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# What a step computes


def load_batch(device: str, names: tuple[str, ...], parts: int) -> list[Batch]:
    """Augment 200 images of noise on `device`, in so many parts."""
    pixels = torch.randint(256, (200, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split(pixels, torch.arange(200) % 10, torch.arange(200)).to(torch.device(device))
    config = TrainConfig(epochs=2, augment=names, batch_size=200, seed=5)
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), torch.device(device))
    batches = Batches(config, split, BatchPlan.from_config(config, 200, 1), normalize, 0)
    return [batches.load(1, torch.arange(r.start, r.stop, device=device)) for r in cut(0, 200, parts)]


def joined(batches: list[Batch]) -> tuple[Tensor, list[Tensor]]:
    """Return images, and positions and labels, of several batches as one, on the CPU."""
    fields = zip(*((batch.images, batch.positions, *batch.labels) for batch in batches), strict=True)
    images, *others = [torch.cat(parts).cpu() for parts in fields if parts[0] is not None]
    return images, others


@each_device
@pytest.mark.parametrize("names", [*((name,) for name in AUGMENTATIONS), (*AUGMENTATIONS[:-2], "cutmix")], ids="+".join)
def test_augmented_pixels_and_labels_are_those_of_a_cpu_bit_for_bit(device, names):
    reference, of_labels = joined(load_batch("cpu", names, parts=7))
    ours, our_labels = joined(load_batch(device, names, parts=1))
    assert len(our_labels) == len(of_labels) == (4 if set(names) & set(MIXES) else 2)
    assert all(a.equal(b) for a, b in zip(our_labels, of_labels, strict=True))
    if device == "cuda" and BETWEEN_PIXELS & set(names):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    else:
        assert ours.equal(reference)


@pytest.mark.gpu
def test_order_and_dropout_masks_are_those_of_a_cpu():
    for epoch in range(3):
        assert epoch_order(7, epoch, 50_000, torch.device("cuda")).cpu().equal(epoch_order(7, epoch, 50_000))
    images, positions = torch.ones(64, 13, 5), torch.arange(10**6, 10**6 + 64)
    layer = Dropout(0.3)
    layer.seed, layer.layer, layer.positions = 3, 2, positions
    on_cpu = layer(images)
    layer.positions = positions.cuda()
    assert layer(images.cuda()).cpu().equal(on_cpu)


@pytest.mark.usefixtures("_whole_float32")
@pytest.mark.parametrize(
    ("device", "model", "reference", "tolerance"),
    [
        ("cpu", "lenet", ["--micro-batch-size", "5"], 1e-4),
        pytest.param("cuda", "lenet", ["--micro-batch-size", "5"], 1e-4, marks=pytest.mark.gpu),
        pytest.param("cuda", "resnet20", [], 1e-2, marks=pytest.mark.gpu),  # batch norm blows rounding up
    ],
)
def test_ten_steps_are_those_of_a_cpu_up_to_rounding(train, device, model, reference, tolerance):
    options = (
        f"--model {model} --steps 10 --log-every 1 --val-fraction 0 --schedule constant --warmup 0 --lr 0.01".split()
    )
    expected = train(*options, *ON["cpu"], *reference, "--no-test", name="reference")
    result = train(*options, *ON[device], "--no-test")
    for ours, theirs in zip(result.metrics("train"), expected.metrics("train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)
    assert result.weights() != expected.weights()  # the same arithmetic would show nothing


@pytest.mark.usefixtures("_whole_float32")
@each_device
@pytest.mark.parametrize("views", [[], ["--tta"]], ids=["one view", "six views"])
def test_evaluation_counts_what_a_cpu_counts_in_blocks_of_any_size(train, data_dir, monkeypatch, device, views):
    trained = train("--epochs", "1", "--lr", "0.02", *ON["cpu"])
    where = ["--checkpoint", str(trained.folder), "--data-dir", str(data_dir), "--threads", "1", *views]
    assert evaluate.main([*where, *ON["cpu"]]) == 0
    expected = trained.json("eval-test.json")
    for block in (500, 64, 7):
        AcceleratorState._reset_state(True)
        monkeypatch.setattr(evaluation, "EVAL_BLOCK", block)
        assert evaluate.main([*where, *ON[device]]) == 0
        counted = trained.json("eval-test.json")
        assert counted["num_images"] == 100
        assert counted["confusion_matrix"] == expected["confusion_matrix"]
        assert counted["second_guess_correct"] == expected["second_guess_correct"]
        assert counted["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_deterministic_runs_end_with_the_same_bits(train, model, precision):
    mixes = set(MIXES) if model == "som" else {"mixup"}  # a map can't be mixed, and an image is mixed once
    augment = [name for name in AUGMENTATIONS if name not in {*mixes, "alternate"}]
    recipe = ["--recipe", "speed94"] if model == "speednet" else []
    options = ["--model", model, *recipe, "--deterministic", "--mixed-precision", precision, "--augment", *augment]
    first, second = (train(*options, "--steps", "2", "--no-test", *ON["cuda"], name=name) for name in "ab")
    assert first.status == second.status == 0
    assert first.weights() == second.weights()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("model", MODELS)
def test_captured_steps_are_taken_and_are_the_eager_ones_up_to_rounding(train, capsys, model, precision):
    recipe = ["--recipe", "speed94"] if model == "speednet" else ["--lr", "0.001"]
    options = [
        "--model",
        model,
        *recipe,
        "--steps",
        "12",
        "--log-every",
        "1",
        "--mixed-precision",
        precision,
        "--no-test",
    ]
    options += ["--deterministic", *ON["cuda"]]
    eager, captured = (train(*options, "--capture", choice, name=choice) for choice in ("off", "on"))
    assert eager.status == captured.status == 0
    assert "can't be captured" not in capsys.readouterr().out
    for ours, theirs in zip(captured.metrics("train"), eager.metrics("train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


# Optimizers


def small_model(device: str) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    return nn.Sequential(*layers).to(device)


def gradients(model: nn.Module, seed: int) -> list[Tensor]:
    """Return those of a loss on noise, laid out as autograd does it."""
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(next(model.parameters()).device)
    loss = F.cross_entropy(model(images), torch.arange(8, device=images.device))
    return list(torch.autograd.grad(loss, list(model.parameters())))


def set_gradients(model: nn.Module, values: list[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(value)


def plain_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return torch's own, a parameter at a time, in the same groups as ours."""
    decayed = [[p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]]
    groups: list[dict[str, Any]] = [
        {"params": decayed[0], "weight_decay": config.weight_decay},
        {"params": decayed[1], "weight_decay": 0.0},
    ]
    one_by_one = {"foreach": False, "fused": False}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, **one_by_one)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups, lr=config.lr, **one_by_one)


@each_device
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fused_steps_on_channels_last_filters_are_plain_steps(optimizer, device):
    config = TrainConfig(epochs=1, optimizer=optimizer, lr=0.01, weight_decay=0.1, nesterov=optimizer == "sgd")
    ours, plain = small_model(device).to(memory_format=torch.channels_last), small_model(device)
    assert not ours[0].weight.is_contiguous() and plain[0].weight.is_contiguous()
    fused, unfused = build_optimizer(ours, config), plain_optimizer(plain, config)
    assert fused.defaults["fused"] and not unfused.defaults["fused"]
    for step in range(5):
        values = gradients(plain, step)
        for model, stepper in ((ours, fused), (plain, unfused)):
            set_gradients(model, values)
            stepper.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.contiguous(), b, rtol=1e-5, atol=1e-6)


@each_device
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_a_first_step_that_overflows_in_fp16_leaves_nothing_behind(optimizer, device, monkeypatch):
    """Fused SGD skips it too, but not before it has allocated its momentum: whatever was in that memory would stay there."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which the next line forbids matrix products
    torch.use_deterministic_algorithms(True)  # which fills what is allocated with nan
    config = TrainConfig(epochs=1, optimizer=optimizer, lr=0.01, mixed_precision="fp16")
    scaled, plain = small_model(device), small_model(device)
    before = [p.detach().clone() for p in scaled.parameters()]
    scaler, factor = torch.amp.GradScaler(device, init_scale=2.0**16), 2.0**15
    optimizers = [build_optimizer(model, config) for model in (scaled, plain)]
    scaler.scale(torch.zeros((), device=device))
    set_gradients(scaled, [torch.full_like(p, torch.inf) for p in scaled.parameters()])
    with no_waiting(device):
        scaler.step(optimizers[0])
        scaler.update()
    assert all(a.equal(b) for a, b in zip(scaled.parameters(), before, strict=True))
    assert scaler.get_scale() == factor
    values = gradients(plain, 0)
    set_gradients(plain, values)
    set_gradients(scaled, [value * factor for value in values])
    optimizers[1].step()
    scaler.step(optimizers[0])
    for a, b, start in zip(scaled.parameters(), plain.parameters(), before, strict=True):
        torch.testing.assert_close(a, b)
        assert not a.equal(start)


# Precision


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), *(pytest.param("cuda", p, marks=pytest.mark.gpu) for p in ("bf16", "fp16"))],
)
def test_the_loss_falls_in_half_precision(train, device, precision):
    options = [*ON[device], "--epochs", "5", "--no-test"]  # of which fp16's first steps may be skipped
    half, whole = (train("--mixed-precision", p, *options, name=p) for p in (precision, "no"))
    losses = [line["loss"] for line in half.metrics("train")]
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] == pytest.approx(whole.metrics("train")[-1]["loss"], rel=0.1)
    assert half.weights() != whole.weights()
    assert all(value.dtype == torch.float32 for value in load(half.weights()).values())


@pytest.mark.gpu
def test_the_gradient_scaler_is_in_the_checkpoint():
    config = TrainConfig(epochs=1, model="lenet", mixed_precision="fp16")
    state = build_state(config, 10, accelerator.accelerate(config))
    known = state.scaler.state_dict() | {"scale": 512.0, "_growth_tracker": 77}
    state.scaler.load_state_dict(known)
    saved = to_bytes(snapshot(state))
    AcceleratorState._reset_state(True)
    fresh = build_state(config, 10, accelerator.accelerate(config))
    assert fresh.scaler.state_dict() != known
    restore(fresh, saved)
    assert fresh.scaler.state_dict() == known


@pytest.mark.gpu
def test_steps_that_overflow_are_skipped_and_the_run_goes_on(train, monkeypatch):
    monkeypatch.setattr(
        "accelerate.accelerator.get_grad_scaler", lambda *_, **__: torch.amp.GradScaler("cuda", init_scale=2.0**40)
    )
    options = ["--mixed-precision", "fp16", "--deterministic", "--log-every", "1", "--val-fraction", "0", *ON["cuda"]]
    skipped = train(*options, "--steps", "3", name="skipped")
    torch.manual_seed(0)
    fresh, kept = build_model("lenet", 4).state_dict(), load(skipped.weights())
    assert all(kept[name].equal(value) for name, value in fresh.items())
    assert [line["gradient_norm"] for line in skipped.metrics("train")] == [None] * 3
    losses = [line["loss"] for line in train(*options, "--epochs", "10", "--no-test").metrics("train")]
    assert losses[-1] < 0.9 * losses[0]


# Starting, stopping, looking


@pytest.mark.gpu
@pytest.mark.usefixtures("_whole_float32")
@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(train, monkeypatch, first, second):
    options = ["--optimizer", "adamw", "--lr", "0.001", "--ema-decay", "0.9", "--no-test"]
    whole = train(*options, *ON["cpu"], name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        assert train(*options, *ON[first]).status == 75
    moved = train(*options, *ON[second])
    assert [start["device"].startswith("cpu") for start in moved.json("config.json")["starts"]] == [
        device == "cpu" for device in (first, second)
    ]
    for ours, theirs in zip(moved.metrics("train"), whole.metrics("train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.gpu
def test_a_run_on_a_gpu_has_its_page_and_pictures(train, capsys):
    result = train("--augment", "crop", "trivial", "cutmix", *ON["cuda"], pictures=True)
    assert result.status == 0
    output = capsys.readouterr().out
    assert "no page" not in output and "no pictures" not in output
    assert (result.folder / "report.html").exists() and list((result.folder / "plots").glob("*.png"))


ONE_RANK = """
import sys
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from cifar_dist.cli.train import main
from cifar_dist.exits import finish
from cifar_dist.training import engine

whole = engine.train_step

def train_step(run, step, *rest):
    if step == 0:
        print("wrapped", isinstance(run.state.wrapped, DistributedDataParallel), "over", dist.get_backend(), flush=True)
    return whole(run, step, *rest)

engine.train_step = train_step
finish(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), pytest.param("cuda", "nccl", marks=pytest.mark.gpu)])
def test_a_process_group_of_one_rank_trains_as_no_group_does(train, folders, data_dir, tmp_path, device, backend):
    options = ["--model", "resnet20", "--deterministic", "--threads", "1", "--batch-size", "32", "--epochs", "2"]
    options += ["--capture", "off"]
    alone = train(*options, *ON[device], name="alone")
    script = tmp_path / "one_rank.py"
    script.write_text(ONE_RANK)
    where = [*ON[device], "--data", str(folders), "--data-dir", str(data_dir), "--output-dir", str(tmp_path / "group")]
    done = torchrun(1, [str(script), *options, *where], gpu=device == "cuda")
    assert "wrapped True over" in done.stdout and backend in done.stdout
    assert (tmp_path / "group/model.safetensors").read_bytes() == alone.weights()


TWO_RANKS = """
import sys
from cifar_dist.cli.train import main
from cifar_dist.exits import finish
from cifar_dist.runtime import accelerator

accelerator.check_launch = lambda *_: None  # which allows no more processes than GPUs
accelerator.meeting_place = lambda timeout: {"backend": "gloo"}  # NCCL refuses two ranks on one GPU
finish(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("model", ["lenet", "zhang"])
def test_captured_steps_of_two_ranks_on_one_device_are_those_of_ddp(folders, data_dir, tmp_path, device, model):
    script, runs = tmp_path / "two_ranks.py", {}
    script.write_text(TWO_RANKS)
    where = ["--data", str(folders), "--data-dir", str(data_dir), *ON[device]]
    options = ["--model", model, "--lr", "0.001", "--deterministic", "--threads", "1", "--batch-size", "32"]
    options += ["--epochs", "2", "--log-every", "1", "--no-test"]
    for choice in ("off", "on"):
        output = ["--output-dir", str(tmp_path / choice), "--capture", choice]
        done = torchrun(2, [str(script), *where, *options, *output], gpu=device == "cuda")
        assert "can't be captured" not in done.stdout
        runs[choice] = Result(done.returncode, tmp_path / choice)
    for ours, theirs in zip(runs["on"].metrics("train"), runs["off"].metrics("train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3 if device == "cuda" else 0)
    assert device == "cuda" or runs["on"].weights() == runs["off"].weights()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.usefixtures("_whole_float32")
@pytest.mark.parametrize("model", ["lenet", "resnet20"])
def test_compiled_are_the_full_micro_batches_alone_and_a_resumed_run_has_the_same_bits(
    train, monkeypatch, tmp_path, model
):
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    options = ["--model", model, "--deterministic", "--epochs", "2", "--lr", "0.01", *ON["cuda"]]
    eager = train(*options, name="eager")
    reset()
    graphs = counters["stats"]["unique_graphs"]
    whole = train(*options, "--compile", name="whole")
    # Of 32 images; not of an epoch's last 24, nor of evaluation.
    assert counters["stats"]["unique_graphs"] == graphs + 1
    for ours, theirs in zip(whole.metrics("train"), eager.metrics("train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train(*options, "--compile").status == 75
    reset()
    resumed = train(*options, "--compile")
    assert resumed.weights() == whole.weights()
    assert untimed(resumed.metrics()) == untimed(whole.metrics())


# What a step costs besides


class NoWaiting(TorchFunctionMode):
    """Raises where Python asks for a tensor's values, or makes a tensor of numbers it has: a GPU waits for either."""

    NAMES = (
        *("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose"),
        *("nonzero", "argwhere", "masked_select", "unique", "bincount", "repeat_interleave"),
        *("tensor", "as_tensor", "from_numpy"),
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        masked = name in ("__getitem__", "__setitem__") and has_mask(args[1])
        if name in self.NAMES or masked:
            raise RuntimeError(f"{name}{' with a mask' * masked} waits for the device")
        return func(*args, **(kwargs or {}))


def has_mask(index: Any) -> bool:
    if isinstance(index, tuple):
        return any(map(has_mask, index))
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Let what would wait for the device raise; on a GPU torch itself looks too."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoWaiting():
            yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@each_device
@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
    ],
)
def test_the_check_for_waiting_finds(wait: Callable[[Tensor], Any], device):
    x = torch.randn(5).to(device)  # drawn there it would fail once a capture has failed, in torch 2.11
    wait(x)
    with pytest.raises(RuntimeError, match=r"waits for the device|synchroniz"), no_waiting(device):
        wait(x)


STEPS = {
    "default": "",
    "augmented": "--augment jitter crop rotate cutout mixup",
    "mixed": "--augment shift alternate cutmix --label-smoothing 0.1",
    "adamw": "--optimizer adamw --weight-decay 0.1 --ema-decay 0.9 --max-grad-norm 1 --micro-batch-size 9 --log-every 1",
    "exact": "--model resnet20 --exact-shards 4 --limit-train 80 --epochs 2",
    "dropout": "--model mlp --model-options dropout=0.2 --optimizer adam --lr 0.001",
    "map": "--model som --recipe pandey2020 --batch-size 32",
    "speed94": "--model speednet --recipe speed94 --model-options width=24 --batch-size 32 --limit-train 96 --epochs 2",
}


@pytest.mark.parametrize(
    ("device", "options"),
    [
        *(pytest.param("cpu", words, id=f"cpu-{name}") for name, words in STEPS.items()),
        *(
            pytest.param("cuda", f"{words} --mixed-precision {p}", id=f"cuda-{name}-{p}", marks=pytest.mark.gpu)
            for name, words in STEPS.items()
            for p in ("no", "bf16", "fp16")
        ),
    ],
)
def test_a_step_never_waits_for_the_device(train, monkeypatch, device, options):
    whole, checked = engine.train_step, []

    def train_step(run, step, *rest):
        if step < 3:  # tables are made, kernels chosen
            return whole(run, step, *rest)
        checked.append(step)
        with no_waiting(device):
            return whole(run, step, *rest)

    monkeypatch.setattr(engine, "train_step", train_step)
    result = train(*options.split(), *ON[device], "--no-test", "--capture", "off")
    assert result.status == 0
    assert checked == list(range(3, result.json("summary.json")["total_steps"])) and len(checked) >= 3


@pytest.mark.parametrize(
    ("device", "options"),
    [
        *(pytest.param("cpu", words, id=f"cpu-{name}") for name, words in STEPS.items()),
        *(
            pytest.param("cuda", f"{words} --mixed-precision {p}", id=f"cuda-{name}-{p}", marks=pytest.mark.gpu)
            for name, words in STEPS.items()
            for p in ("no", "bf16", "fp16")
        ),
    ],
)
def test_a_replayed_step_never_waits_for_the_device(train, monkeypatch, device, options):
    whole, replayed = captured.Replay.__call__, []

    def replay(self, step, batches):
        with no_waiting(device):
            gradient_norm = whole(self, step, batches)
        replayed.append(step)
        return gradient_norm

    monkeypatch.setattr(captured.Replay, "__call__", replay)
    assert train(*options.split(), *ON[device], "--no-test", "--capture", "on").status == 0
    assert len(set(replayed)) >= 2


@each_device
def test_no_learning_rate_makes_a_step_wait(device):
    config = TrainConfig(epochs=1, optimizer="sgd", lr=0.01)
    optimizer = build_optimizer(small_model(device), config)
    groups = [{**group, "params": [SimpleNamespace(is_cuda=True)]} for group in optimizer.param_groups]
    with no_waiting(device):
        set_lr(optimizer, 0.1)
        set_lr(SimpleNamespace(param_groups=groups), 0.1)
    assert [group["lr"] for group in groups] == [torch.tensor(0.1).item()] * len(groups)
    assert optimizer.param_groups[0]["lr"] == (0.1 if device == "cpu" else torch.tensor(0.1).item())


def held_bytes(device: str) -> int:
    """Return what tensors hold in memory."""
    gc.collect()
    if device == "cuda":
        return torch.cuda.memory_allocated()
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize(("device", "epochs"), [("cpu", 6), pytest.param("cuda", 30, marks=pytest.mark.gpu)])
def test_memory_stays_flat(train, monkeypatch, device, epochs):
    whole, held = engine.train_step, []

    def train_step(run, step, *rest):
        epoch = run.plan.batch(step)[0]
        if epoch >= 3 and run.plan.is_epoch_end(
            step, 1
        ):  # by then the orders of two epochs are kept, and all else is made
            held.append(held_bytes(device))
        return whole(run, step, *rest)

    monkeypatch.setattr(engine, "train_step", train_step)
    train("--ema-decay", "0.9", "--augment", "crop", "rotate", "mixup", "--epochs", str(epochs), *ON[device])
    assert len(held) == epochs - 3 and held[0] > 0
    assert len(set(held)) == 1


# Loading


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_loaded_model_answers_alike_on_both_devices(device, precision, tmp_path):
    model = build_model("resnet20")
    about = {"model": "resnet20", "model_options": [], "classes": list("0123456789"), "mixed_precision": precision}
    about |= {"mean": [0.5] * 3, "std": [0.25] * 3, "dataset": "none"}
    (tmp_path / "model.safetensors").write_bytes(pack_weights(model, about))
    loaded = load_model(tmp_path, device="gpu" if device == "cuda" else "cpu")
    assert {p.device.type for p in loaded.model.parameters()} == {device}
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.cpu().eval()((pixels / 255 - 0.5) / 0.25).softmax(dim=1)
    shares = torch.from_numpy(loaded.probabilities(pixels))
    assert (shares - expected).abs().max() < (0.05 if precision == "bf16" else 0.01)
    assert torch.equal(shares, torch.from_numpy(loaded.probabilities(pixels.to(device))))
