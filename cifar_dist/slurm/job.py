"""What slurm/job.sh asks, on the nodes: `python -m cifar_dist.slurm.job QUESTION WORDS`. Without torch, which takes seconds.

run OPTIONS              the run folder of this job's run, with the options of train.py
sweep FILE OPTIONS       that of this task of a sweep
data OPTIONS             the folder of the data
outcome FOLDER           how the run there ended: status, step, total steps, the step it began at, signal
copy-data FROM TO        copies the decoded data sets, to a disk of the node
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_dist.config import TrainConfig
from cifar_dist.options import option_value
from cifar_dist.record.folder import RunFolder
from cifar_dist.slurm.squeue import fill, folder_pattern


def main(argv: Sequence[str]) -> int:
    """Answer on standard output; returns the exit status."""
    question, words = argv[0], argv[1:]
    if question == "copy-data":
        from cifar_dist.data.cache import copy_caches  # imports torch

        copy_caches(Path(words[0]), Path(words[1]))
    elif question == "outcome":
        print(*outcome(Path(words[0])))
    elif question == "data":
        print(option_value(words, "data_dir") or TrainConfig.data_dir)
    else:
        print(run_folder(words, words[0] if question == "sweep" else None))
    return 0


def run_folder(words: Sequence[str], sweep: str | None) -> str:
    """Return where this job's run is."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job_id = os.environ["SLURM_JOB_ID"]
    pattern = folder_pattern(option_value(words, "output_dir"), sweep, task is not None)
    return fill(pattern, os.environ["SLURM_JOB_NAME"], job_id, os.environ.get("SLURM_ARRAY_JOB_ID", job_id), task)


def outcome(folder: Path) -> list[object]:
    """Return the run's status, the step it reached, of how many, the step it began at, and the signal that stopped it."""
    run = RunFolder(folder)
    summary, config = run.summary() or {}, run.config() or {}
    reached = [summary.get(name) for name in ("status", "step", "total_steps")]
    return [*reached, config["starts"][-1]["from_step"], summary.get("signal")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
