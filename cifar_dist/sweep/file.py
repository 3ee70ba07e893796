"""Reads a sweep file in the Weights & Biases format, and refuses what only their servers could do."""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_origin, get_type_hints

import yaml

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError, lookup, unknown
from cifar_dist.record.metric import METRICS, Metric
from cifar_dist.sweep.space import DISTRIBUTIONS, USUAL_METRIC, VARIABLE, Parameter, Sweep

KEYS = ("program", "name", "description", "project", "entity", "method", "metric", "parameters", "run_cap", "command")
PARAMETER_KEYS = ("value", "values", "probabilities", "distribution", "min", "max", "q")
MACROS = ("${env}", "${interpreter}", "${program}", "${args}", "${args_no_boolean_flags}")
SHAPES = {"constant": "value", "categorical": "values"}  # what gives a distribution; the others: min and max
ROUNDED = ("q_uniform", "q_log_uniform_values")  # to multiples of q
SWEEPS_OWN = ("output_dir", "resume")
OPTIONS = {name: kind for name, kind in get_type_hints(TrainConfig).items() if name not in SWEEPS_OWN}


def read_sweep(text: str | bytes, where: str) -> Sweep:
    """Parse a sweep file; raises `UserError` that begins with `where`."""
    try:
        return _sweep(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _sweep(content: Any) -> Sweep:
    _check_mapping(content, "a sweep file", "method: grid, parameters: {lr: {values: [0.1, 0.2]}}")
    if "early_terminate" in content:
        raise UserError("early_terminate is not supported locally, every run goes to its end; leave it out")
    _check_keys(content, KEYS, "key")
    cap = content.get("run_cap")
    if cap is not None and not (_is_number(cap, int) and cap > 0):
        raise UserError(f"run_cap must be a whole number greater than 0, got {cap!r}")
    method = _method(content.get("method"))
    return Sweep(
        method,
        _parameters(content.get("parameters"), method),
        *(_metric(content["metric"]) if "metric" in content else (Sweep.metric, Sweep.goal)),
        cap,
        str(content.get("program", Sweep.program)),
        _command(content["command"]) if "command" in content else Sweep.command,
    )


def _method(name: Any) -> Literal["grid", "random"]:
    if name == "bayes":
        raise UserError("method bayes is not supported locally; use random")
    if name not in ("grid", "random"):
        raise unknown("method", str(name), ("grid", "random"))
    return name


def _metric(content: Any) -> tuple[Metric, Literal["maximize", "minimize"]]:
    _check_mapping(content, "metric", "{name: val/accuracy, goal: maximize}")
    _check_keys(content, ("name", "goal"), "key of metric")
    name, goal = str(content.get("name", USUAL_METRIC.name)), content.get("goal")
    metric = lookup(METRICS, name, "metric")
    if goal not in ("maximize", "minimize"):  # W&B's default is to minimize, an accuracy too
        raise UserError(f"goal of metric {name} must be maximize or minimize, got {goal}")
    return metric, goal


def _command(content: Any) -> tuple[str, ...]:
    command = tuple(map(str, content)) if isinstance(content, list) else ()
    for word in command:
        if word in ("${args_no_hyphens}", "${args_json}", "${args_json_file}"):
            raise UserError(
                f"{word} is not supported locally: train.py takes options with their hyphens; use ${{args}}"
            )
        if "${" in VARIABLE.sub("", word) and word not in MACROS:
            raise unknown("macro", word, MACROS)
    if sum(word.startswith("${args") for word in command) != 1:
        raise UserError(f"command must be a list of words, ${{args}} among them, got {content!r}")
    return command


def _parameters(content: Any, method: str) -> dict[str, Parameter]:
    _check_mapping(content, "parameters", "{lr: {values: [0.1, 0.2]}}")
    parameters: dict[str, Parameter] = {}
    for key, description in content.items():
        name = str(key).replace("-", "_")
        if name in SWEEPS_OWN:
            raise UserError(f"parameter {key}: each run has a folder of its own and resumes always; leave it out")
        if name not in OPTIONS:
            raise unknown("parameter", str(key), OPTIONS)
        if name in parameters:
            raise UserError(f"parameter {name} is there twice, once with - and once with _; leave one out")
        try:
            parameters[name] = _parameter(description, method, OPTIONS[name])
        except UserError as error:
            raise UserError(f"parameter {key}: {error}") from None
    return parameters


def _parameter(content: Any, method: str, hint: Any) -> Parameter:
    """Read what values an option of type `hint` takes."""
    _check_mapping(content, "it", "{value: 0.1}, {values: [0.1, 0.2]} or {min: 0.1, max: 0.2}")
    if "parameters" in content:
        raise UserError(
            "parameters inside a parameter are not supported: options of train.py have no parts; list each by itself"
        )
    _check_keys(content, PARAMETER_KEYS, "key")
    shape = " and ".join(key for key in ("value", "values", "min", "max") if key in content)
    kind = str(content.get("distribution", _usual_distribution(content)))
    if kind not in DISTRIBUTIONS:
        raise UserError(f"distribution {kind} is not supported locally; use one of: {', '.join(DISTRIBUTIONS)}")
    if shape != SHAPES.get(kind, "min and max"):
        raise UserError(f"{kind} takes {SHAPES.get(kind, 'min and max')}, got {shape or 'neither'}")
    if "q" in content and kind not in ROUNDED:
        raise UserError(f"q has no effect with {kind}; use distribution: {' or '.join(ROUNDED)}")
    if "probabilities" in content and (method, kind) != ("random", "categorical"):
        raise UserError(f"probabilities have no effect with {method} {shape}; use them with method random and values")
    if kind not in SHAPES and method == "grid":
        raise UserError(f"a grid takes value or values, got {shape}; use method random")
    return _list(content, kind, hint) if kind in SHAPES else _range(content, kind)


def _usual_distribution(content: Mapping[str, Any]) -> str:
    """Return the distribution that W&B takes where none is named."""
    if "value" in content or "values" in content:
        return "constant" if "value" in content else "categorical"
    return "int_uniform" if all(_is_number(content.get(key), int) for key in ("min", "max")) else "uniform"


def _list(content: Mapping[str, Any], kind: str, hint: Any) -> Parameter:
    values = [content["value"]] if kind == "constant" else content["values"]
    if not isinstance(values, list) or not values:
        raise UserError(f"values must be a list of at least one, got {values!r}")
    for value in values:
        _check_value(value, hint)
    if "probabilities" not in content:
        return Parameter(kind, tuple(values))
    shares = content["probabilities"]
    fit = isinstance(shares, list) and len(shares) == len(values) and all(_is_number(s) and s >= 0 for s in shares)
    if not fit or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(f"probabilities must be {len(values)} numbers, one a value, that add up to 1; got {shares!r}")
    return Parameter(kind, tuple(values), tuple(map(float, shares)))


def _check_value(value: Any, hint: Any) -> None:
    """Raise `UserError` for what can't be words of an option of type `hint`; what the words mean is checked by train.py."""
    if hint is bool and not isinstance(value, bool):
        raise UserError(f"takes true or false, got {value!r}")
    if hint is not bool and isinstance(value, bool):
        raise UserError(f"takes no {value}; YAML reads yes, no, on and off as true and false: quote them")
    if isinstance(value, list) and get_origin(hint) is not tuple:
        raise UserError(f"takes one value, got {value!r}; use values: for several to try")
    words = value if isinstance(value, list) else [] if value is None or hint is bool else [value]
    if not all(isinstance(word, str) or _is_number(word) for word in words):
        raise UserError(f"a value is text, a number, true, false, null, or a list of words; got {value!r}")


def _range(content: Mapping[str, Any], kind: str) -> Parameter:
    low, high, q = content["min"], content["max"], content.get("q", 1)
    needed, what = (
        (int, "whole number") if kind == "int_uniform" else (float, "number; YAML reads 1e-3 as text, 1.0e-3 as one")
    )
    for key, number in (("min", low), ("max", high), ("q", q)):
        if not _is_number(number, needed):
            raise UserError(f"{key} of {kind} must be a {what}; got {number!r}")
    for holds, message in [
        (low < high, f"min {low} must be less than max {high}"),
        (low > 0 or "log" not in kind, f"min of {kind} must be greater than 0, got {low}"),
        (q > 0, f"q must be greater than 0, got {q}"),
        (q <= 0 or math.isfinite(high / q), f"q {q} is too small for max {high}"),
    ]:
        if not holds:
            raise UserError(message)
    parameter = Parameter(kind, low=low, high=high, q=q)
    smallest, largest = parameter.multiples()
    if kind in ROUNDED and smallest > largest:
        raise UserError(f"no multiple of q {q} is in [{low}, {high}]; use a smaller q")
    return parameter


def _is_number(value: Any, kind: type = float) -> bool:
    """Whether it is a finite number, or with `kind` int a whole one; a boolean is neither."""
    numbers = int if kind is int else (int, float)
    return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_mapping(content: Any, what: str, example: str) -> None:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{what} must be a mapping such as {example}, got {content!r}")


def _check_keys(content: Mapping[Any, Any], keys: Iterable[str], kind: str) -> None:
    for key in content:
        if key not in keys:
            raise unknown(kind, str(key), keys)
