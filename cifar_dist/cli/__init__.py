"""The commands: one module each, imported only when it is asked for. `train.py` and `eval.py` are two more."""

from typing import Any

from cifar_dist.options import OneLineParser

COMMANDS = {
    "models": "list the models: source, parameters, published accuracy",
    "recipes": "list the recipes, or print one: source, models, published accuracy, options",
    "summary": "show or draw a model's layers: output shapes, parameters, multiply-accumulates",
    "prepare": "download, decode and cache a data set, for machines without internet",
    "doctor": "check what this machine or job can do, and with --dry-run what a run would do",
    "sweep": "run a grid or random search, written as a Weights & Biases sweep, on this machine",
    "submit": "submit a run, seeds or a sweep to Slurm, checked before",
    "queue": "show our Slurm jobs with their run's progress",
    "compare": "compare runs: a table by configuration with intervals, a page with curves and tests, CSV and JSON",
    "verify": "do parts of a run again, and say whether every bit is the same",
    "bisect": "find the first step at which two runs part, and why",
    "predict": "say what a model sees in images of any size and format, with probabilities",
    "latency": "measure how fast a model answers: images/s and latency by batch size, from pixels to probabilities",
    "export": "write a trained model as ONNX, torch.export program, state_dict and safetensors, with a model card",
    "explain": "say where a run's time goes, how near it is to the machine's limit, and what would be faster",
    "report": "make the page and pictures of a run anew",
    "sync": "upload the runs that Weights & Biases does not have yet, and verify each",
}


def command_parser(name: str, more: str = "", **keywords: Any) -> OneLineParser:
    """Return the parser of a command: what COMMANDS says of it, and `more`, is its description."""
    text = COMMANDS[name]
    description = f"{text[0].upper()}{text[1:]}. {more}".rstrip()
    return OneLineParser(prog=f"python -m cifar_dist {name}", description=description, **keywords)
