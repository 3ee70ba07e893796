"""What `import cifar_dist` offers."""

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.runs import ROOT, stop_after
from PIL import Image

import cifar_dist
from cifar_dist.errors import UserError


@pytest.fixture
def options(folders, data_dir, tmp_path) -> dict:
    """What the fixture `train` of the commands has, as options."""
    AcceleratorState._reset_state(True)
    usual = {"model": "lenet", "batch_size": 32, "log_every": 3, "threads": 1, "steps": 4}
    return {**usual, "data": folders, "data_dir": data_dir, "output_dir": tmp_path / "mine"}


def test_importing_it_imports_neither_torch_nor_anything_else_of_its_own():
    code = "import sys, cifar_dist; print([m for m in sys.modules if m.startswith(('torch', 'numpy', 'cifar_dist.'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_public():
    assert sorted(cifar_dist.__all__) == ["__version__", "load_model", "predict", "train"]
    assert set(cifar_dist.__all__) <= set(dir(cifar_dist))
    for name in ("load_model", "predict", "train"):
        assert callable(getattr(cifar_dist, name)) and getattr(cifar_dist, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cifar_dist.nothing  # noqa: B018
    assert (Path(cifar_dist.__file__).parent / "py.typed").is_file()


def test_train_is_the_command_and_leaves_the_process_as_it_was(train, options):
    command = train("--steps", "4")
    AcceleratorState._reset_state(True)
    torch.set_num_threads(2)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    torch.backends.mkldnn.enabled = True
    folder = cifar_dist.train(**options, augment=["crop", "flip"])
    assert folder == options["output_dir"]
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == (2, True)
    again = cifar_dist.train(
        **{**options, "output_dir": options["output_dir"].with_name("again")}, mixed_precision="no"
    )
    weights = [(path / "model.safetensors").read_bytes() for path in (command.folder, folder, again)]
    assert weights[0] == weights[1] == weights[2]
    assert cifar_dist.load_model(again).classes == ("bird", "cat", "dog", "ship")


def test_what_train_refuses_it_raises(options, monkeypatch, tmp_path):
    for wrong, message in (
        ({"learning_rate": 1}, "unknown option of train 'learning_rate'"),
        ({"lr": -1}, "--lr must be greater than 0"),
        ({"lr": "x"}, "--lr must be a number"),
        ({"model": "lenett"}, "Did you mean 'lenet'"),
        ({"help": True}, "unknown option of train 'help'"),
        ({"data": tmp_path / "nowhere"}, "is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            cifar_dist.train(**{**options, **wrong})
    caught: list[Exception] = []

    def elsewhere() -> None:
        try:
            cifar_dist.train(**options)
        except UserError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "only the main thread" in str(caught[0])
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="works in one process"):
            cifar_dist.train(**options)
    Accelerator(cpu=True)
    with pytest.raises(UserError, match="needs Accelerate to itself"):
        cifar_dist.train(**options)
    assert not options["output_dir"].exists()


def test_a_signal_comes_again_when_the_run_is_saved_and_the_same_call_goes_on(options, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            cifar_dist.train(**options)
    assert '"interrupted"' in (options["output_dir"] / "summary.json").read_text()
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert '"finished"' in (cifar_dist.train(**options) / "summary.json").read_text()


def test_predict_takes_paths_bytes_arrays_and_pillow_images_alike(options, tmp_path):
    model = cifar_dist.load_model(str(cifar_dist.train(**options)), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    (single,) = cifar_dist.predict(model, path)
    assert (single.name, single.error, len(single.top)) == (str(path), "", 3)
    many = cifar_dist.predict(model, [str(path), path.read_bytes(), pixels, Image.open(path)])
    assert [prediction.name for prediction in many] == [str(path), "image 1", "image 2", "image 3"]
    for prediction in many:  # a block of four rounds otherwise than one of one
        assert replace(prediction, name=single.name, top=()) == replace(single, top=())
        assert [g.label for g in prediction.top] == [g.label for g in single.top]
        assert [g.probability for g in prediction.top] == pytest.approx([g.probability for g in single.top], rel=1e-5)
    for one in (path, path.read_bytes(), pixels, pixels[..., 0], Image.open(path)):
        assert len(cifar_dist.predict(model, one)) == 1
    assert [len(cifar_dist.predict(model, several)) for several in ([], pixels[None], iter([pixels] * 3))] == [0, 1, 3]
    (bad,) = cifar_dist.predict(model, pixels.astype(float))
    assert bad.top == () and bad.error == "is an array float64 (40, 60, 3); uint8 (H, W) or (H, W, 3) is needed"
    assert sum(guess.probability for guess in cifar_dist.predict(model, path, top=99)[0].top) == pytest.approx(1)
    with pytest.raises(UserError, match="not int; give one of these"):
        cifar_dist.predict(model, [3])
    with pytest.raises(UserError, match="top must be 1 or greater"):
        cifar_dist.predict(model, path, top=0)


def test_load_model_refuses_what_it_cannot_use(options, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        cifar_dist.load_model(tmp_path / "nowhere")
    folder = cifar_dist.train(**options)
    for temperature in (0, -1, float("inf"), float("nan"), "2"):
        with pytest.raises(UserError, match="temperature must be a number greater than 0"):
            cifar_dist.load_model(folder, temperature=temperature)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device gpu"):
            cifar_dist.load_model(folder, device="gpu")
