"""TensorBoard's event files say what the record says, each line once, after a stop and a start too."""

import json

import pytest
from helpers.runs import stop_after

from cifar_dist.tracking import tensorboard

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """Read the events back with TensorBoard's own reader."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("stopped", [False, True])
def test_every_line_is_there_once(train, monkeypatch, stopped):
    if stopped:
        with monkeypatch.context() as patch:
            stop_after(patch, 10)
            train("--tensorboard")
    run = train("--tensorboard")
    shown = scalars(run.folder)
    for tag, kind, name in (
        ("train/loss", "train", "loss"),
        ("val/accuracy", "val", "accuracy"),
        ("train/lr", "train", "lr"),
    ):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in run.metrics(kind)]
        assert shown[tag] == expected, tag
    assert "test/accuracy" in shown and not {"epoch", "seconds", "global_step"} & shown.keys()
    assert json.loads((run.folder / "config.json").read_text())["config"]["tensorboard"] is True


def test_without_the_package_there_is_a_line(train, monkeypatch, capsys):
    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    assert train("--tensorboard").status == 2
    assert "--tensorboard needs the package tensorboard; pip install tensorboard" in capsys.readouterr().err
