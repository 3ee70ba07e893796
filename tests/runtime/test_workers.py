"""Jobs in processes of their own, and what is said of those that fail."""

import pytest

from cifar_dist.config import TrainConfig
from cifar_dist.runtime.workers import WorkerError, run_worker


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('a warning', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)", "it was ended by signal 9"),
        ("print('error: no data\\nthe end', file=sys.stderr); sys.exit(2)", "no data"),
        ("raise ValueError('a bug')", "ValueError: a bug"),
        ("sys.exit(1)", "it said nothing"),
    ],
)
def test_why_a_worker_failed_is_one_line(tmp_path, monkeypatch, code, said):
    (tmp_path / "failing_worker.py").write_text(f"import os, sys\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkerError) as error:
        run_worker("failing_worker", {}, TrainConfig(epochs=1), 1)
    assert str(error.value) == said
