"""What slurm/job.sh asks the package."""

import subprocess
import sys

import pytest
from helpers.runs import ROOT

from cifar_dist.config import TrainConfig
from cifar_dist.options import OneLineParser, add_flags, option_value
from cifar_dist.slurm import job

ALONE = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}
TASK = {**ALONE, "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4"}


@pytest.mark.parametrize(
    ("environment", "question", "words", "folder"),
    [
        (ALONE, "run", [], "runs/train-7"),
        (TASK, "run", ["--lr", "1"], "runs/train-7_4"),
        (ALONE, "run", ["--output-dir", "a b/c"], "a b/c"),
        (ALONE, "run", ["--output_dir=b%j"], "b%j"),
        (TASK, "sweep", ["some/lr.yaml", "--data", "x"], "runs/lr/0004"),
        (TASK, "sweep", ["lr", "--output_dir", "mine"], "mine/0004"),
        (ALONE, "data", ["--data", "x"], TrainConfig.data_dir),
        (ALONE, "data", ["--data_dir=/scratch/a b"], "/scratch/a b"),
    ],
)
def test_the_folders_of_a_job_are_those_its_options_name(monkeypatch, capsys, environment, question, words, folder):
    for name in TASK:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert job.main([question, *words]) == 0
    assert capsys.readouterr().out == f"{folder}\n"


@pytest.mark.parametrize("words", ["--output-dir a", "--output_dir a", "--output_dir=a --lr 1", "--lr 1"])
def test_an_option_is_found_as_train_py_finds_it(words):
    parser = OneLineParser()
    add_flags(parser, TrainConfig)
    assert option_value(words.split(), "output_dir") == parser.parse(words.split()).get("output_dir")


def test_data_are_copied_to_a_nodes_disk_whole_and_once(tmp_path):
    for name, text in (("cifar10-v2", "new"), ("other-v0", "old format"), ("cifar10-v2.partial", "torn")):
        (tmp_path / "shared/cache" / name).mkdir(parents=True)
        (tmp_path / "shared/cache" / name / "about.json").write_text(text)
    for _ in range(2):
        assert job.main(["copy-data", str(tmp_path / "shared"), str(tmp_path / "local")]) == 0
        assert [path.name for path in (tmp_path / "local/cache").iterdir()] == ["cifar10-v2"]
    (tmp_path / "shared/cache/cifar10-v2/about.json").write_text("changed")
    job.main(["copy-data", str(tmp_path / "shared"), str(tmp_path / "local")])
    assert (tmp_path / "local/cache/cifar10-v2/about.json").read_text() == "new"


def test_the_answers_do_not_wait_for_torch():
    code = "import sys; from cifar_dist.slurm import job; job.main(['data']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
