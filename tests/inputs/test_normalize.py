"""What `--normalize none` leaves as it is, from training to what is given away."""

import numpy as np
import pytest
import torch

from cifar_dist import load_model
from cifar_dist.__main__ import main
from cifar_dist.cli.evaluate import main as evaluate
from cifar_dist.data import load_dataset
from cifar_dist.training.weights import load_weights


def test_a_run_without_normalisation_is_evaluated_predicted_and_exported_without(train, folders, data_dir, tmp_path):
    result = train("--normalize", "none", "--augment", "none")
    model, about = load_weights(result.folder / "model.safetensors")
    assert (about["mean"], about["std"]) == ([0, 0, 0], [1, 1, 1])
    test = load_dataset(str(folders), data_dir).test
    images = test.images[test.index]
    with torch.no_grad():
        by_hand = model(images / 255)
    correct = (by_hand.argmax(dim=1) == test.labels()).double().mean().item()
    assert result.json("summary.json")["test"]["accuracy"] == correct
    where = ["--checkpoint", str(result.folder), "--data", str(folders), "--data-dir", str(data_dir), "--threads", "1"]
    assert evaluate(where) == 0
    assert result.json("eval-test.json")["accuracy"] == correct
    torch.testing.assert_close(load_model(result.folder).logits(images), by_hand, atol=1e-5, rtol=1e-5)
    assert main(["export", str(result.folder), "--format", "onnx", "--output-dir", str(tmp_path / "out")]) == 0
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    (exported,) = session.run(None, {session.get_inputs()[0].name: images[:8].numpy()})
    np.testing.assert_allclose(exported, by_hand[:8].numpy(), atol=1e-4)
