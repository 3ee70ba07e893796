"""What tests of Weights & Biases share."""

import json
from pathlib import Path

from cifar_dist.tracking.rows import row

STEPS = ["--epochs", "2", "--eval-every", "1"]


def no_server(monkeypatch, tmp_path, **environment: str) -> None:
    """Let the client of this test have nothing but `environment`."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def expected_rows(folder: Path) -> list[dict]:
    return [row(json.loads(line)) for line in (folder / "metrics.jsonl").open()]


def our_part(history: list[dict]) -> list[dict]:
    """Rows as we sent them, without what the client adds, and without the last one, of media."""
    rows = [{name: value for name, value in row.items() if not name.startswith("_")} for row in history]
    return [row for row in rows if "epoch" in row]
