import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import ROOT

from cifar_dist.__main__ import main
from cifar_dist.cli import submit as submit_command
from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config
from cifar_dist.slurm import sbatch, squeue
from cifar_dist.slurm.sbatch import directives, slurm_time, time_limit

FAKE = """#!{python}
import json, os, sys
keep = {{k: v for k, v in os.environ.items() if k.startswith("SBATCH_") or k == "GPUS_PER_NODE"}}
with open("{log}", "a") as log:
    log.write(json.dumps([sys.argv[1:], keep]) + "\\n")
answers = json.load(open("{answers}"))
status, out, err = answers["test" if "--test-only" in sys.argv else "submit"]
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""
ACCEPTED = "sbatch: Job 7 to start at 2026-11-21T03:37:05 using 4 processors on nodes node1 in partition gpu\n"


class Cluster:
    """A checkout with our templates, and an sbatch that answers as it is told."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin = root / "repository", root / "bin"
        shutil.copytree(ROOT / "slurm", self.root / "slurm", ignore=shutil.ignore_patterns("site.sh"))
        (self.root / "cifar_dist").mkdir()
        (self.root / "data").mkdir()
        (self.root / "data" / "cifar-10-python.tar.gz").touch()
        self.bin.mkdir()
        for program in ("bash", "env"):
            (self.bin / program).symlink_to(str(shutil.which(program)))
        self.log, self.answers = root / "log", root / "answers.json"
        self.answer()

    def answer(self, test=(0, "", ACCEPTED), submit=(0, "4242\n", "")) -> None:
        self.answers.write_text(json.dumps({"test": test, "submit": submit}))

    def install(self) -> None:
        path = self.bin / "sbatch"
        path.write_text(FAKE.format(python=sys.executable, log=self.log, answers=self.answers))
        path.chmod(0o755)

    def site(self, text: str) -> None:
        (self.root / "slurm" / "site.sh").write_text(text)

    def calls(self) -> list:
        return [json.loads(line) for line in self.log.open()] if self.log.exists() else []


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Cluster:
    found = Cluster(tmp_path)
    for module in (sbatch, squeue):
        monkeypatch.setattr(module, "TEMPLATES", found.root / "slurm")
    monkeypatch.chdir(found.root)
    # What a user has whose checkout holds data; it was decided when the class was made.
    monkeypatch.setitem(TrainConfig.__init__.__kwdefaults__, "data_dir", "data")
    monkeypatch.setenv("PATH", str(found.bin))
    for name in ("SBATCH_PARTITION", "SBATCH_ACCOUNT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return found


def submit(*argv: str) -> int:
    return main(["submit", *argv])


GOLDEN = {
    "--model lenet": "sbatch --job-name=lenet-default --comment=cifar_dist:runs/%x-%j slurm/preemptible.sbatch --model lenet",
    "--model lenet --recipe li2024 --seed 3 --nodes 4 --time 2h": (
        "sbatch --job-name=lenet-li2024 --comment=cifar_dist:runs/%x-%j --nodes=4 --time=02:00:00 "
        "slurm/preemptible.sbatch --model lenet --recipe li2024 --seed 3"
    ),
    "--no-preemptible --lr 0.05 --no-nesterov --augment none": (
        "sbatch --job-name=resnet20-default --comment=cifar_dist:runs/%x-%j "
        "slurm/train.sbatch --lr 0.05 --no-nesterov --augment none"
    ),
    "--no-preemptible --nodes 2 --partition big --account phys": (
        "sbatch --job-name=resnet20-default --comment=cifar_dist:runs/%x-%j --nodes=2 --partition=big --account=phys "
        "slurm/multinode.sbatch"
    ),
    "--gpus-per-node 2 --job-name night --output-dir runs/mine": (
        "sbatch --job-name=night --comment=cifar_dist:runs/mine --gpus-per-node=2 --oversubscribe --cpus-per-task=8 --mem=32G "
        "slurm/preemptible.sbatch --output-dir runs/mine"
    ),
    "--gpus-per-node 0": (
        "GPUS_PER_NODE=0 sbatch --job-name=resnet20-default --comment=cifar_dist:runs/%x-%j --gpus-per-node=0 "
        "slurm/preemptible.sbatch"
    ),
    "--recipe ghasemi2024/9 --output-dir 'runs/100% mine'": (
        "sbatch --job-name=ghasemi-ghasemi2024-9 '--comment=cifar_dist:runs/100%% mine' "
        "slurm/preemptible.sbatch --recipe ghasemi2024/9 --output-dir 'runs/100% mine'"
    ),
    "--array-seeds 5 --throttle 2 --model resnet18 --time 1-12": (
        "sbatch --job-name=resnet18-default --comment=cifar_dist:runs/%x-%A_%a --array=0-4%2 --time=1-12:00:00 "
        "slurm/sweep.sbatch --model resnet18"
    ),
    "--array-seeds 3 --gpus-per-node 2 --nodes 2": (
        "sbatch --job-name=resnet20-default --comment=cifar_dist:runs/%x-%A_%a --array=0-2 --nodes=2 --gpus-per-node=2 "
        "--cpus-per-task=8 --mem=32G slurm/sweep.sbatch"
    ),
    "--sweep sengar2024 --throttle 4": (
        "sbatch --job-name=sengar2024 --comment=cifar_dist:runs/sengar2024/%4a --array=0-29%4 slurm/sweep.sbatch sengar2024"
    ),
    "--sweep my/lr.yaml --epochs 2 --count 2 --sweep-seed 1 --output-dir runs/lr-2": (
        "sbatch --job-name=lr --comment=cifar_dist:runs/lr-2/%4a --array=0-1 "
        "slurm/sweep.sbatch my/lr.yaml --epochs 2 --count 2 --sweep-seed 1 --output-dir runs/lr-2"
    ),
    "--data /scratch/birds --data-on-nodes": (
        "sbatch --job-name=resnet20-default --comment=cifar_dist:runs/%x-%j slurm/preemptible.sbatch --data /scratch/birds"
    ),
}


@pytest.fixture
def sweep_file(cluster) -> None:
    (cluster.root / "my").mkdir()
    (cluster.root / "my" / "lr.yaml").write_text(
        "method: random\nrun_cap: 3\nmetric: {name: val/accuracy, goal: maximize}\n"
        "parameters:\n  model: {value: lenet}\n  lr: {min: 0.01, max: 0.1}\n"
    )


@pytest.mark.parametrize("options", GOLDEN)
@pytest.mark.usefixtures("sweep_file")
def test_a_dry_run_shows_the_whole_command_as_a_line_for_a_shell(capsys, options):
    assert submit(*shlex.split(options), "--dry-run") == 0
    assert capsys.readouterr().out == GOLDEN[options] + "\n"


@pytest.mark.usefixtures("cluster")
def test_the_job_trains_with_the_options_that_were_given(capsys):
    given = shlex.split(
        "--model lenet --augment crop flip --lr 0.03 --no-test --wandb-tags none --steps 9 --data synthetic"
    )
    submit("--time", "1h", "--dry-run", *given)
    words = shlex.split(capsys.readouterr().out)
    arguments = words[words.index("slurm/preemptible.sbatch") + 1 :]
    parser = OneLineParser()
    add_flags(parser, TrainConfig)
    assert resolve_train_config(parser.parse(arguments)) == resolve_train_config(parser.parse(given))


def test_every_option_that_is_read_from_a_template_is_there():
    for path in (ROOT / "slurm").glob("*.sbatch"):
        assert {"output", "nodes", "gpus-per-node", "time"} <= directives(path.stem).keys(), path
    assert directives("preemptible")["signal"].startswith("B:USR1@")
    assert int(directives("sweep")["gpus-per-node"]) == 1  # what its CPUs and memory are for


def test_a_dry_run_asks_slurm_where_there_is_one_and_mentions_a_download(cluster, capsys):
    cluster.install()
    (cluster.root / "data" / "cifar-10-python.tar.gz").unlink()
    assert submit("--model", "lenet", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        GOLDEN["--model lenet"],
        "# CIFAR-10 is not in data yet, and nodes may have no network; python -m cifar_dist prepare gets it here",
        "# Slurm accepts it, to start at 2026-11-21T03:37:05 using 4 processors on nodes node1 in partition gpu",
    ]
    ((argv, _),) = cluster.calls()
    assert argv == ["--test-only", *shlex.split(GOLDEN["--model lenet"])[1:]]


def test_cifar100_has_a_download_of_its_own(cluster, capsys):
    cluster.install()
    note = "# CIFAR-100 is not in data yet, and nodes may have no network; python -m cifar_dist prepare --data cifar100 gets it here"
    assert submit("--model", "lenet", "--data", "cifar100", "--dry-run") == 0
    assert note in capsys.readouterr().out.splitlines()
    (cluster.root / "data" / "cifar-100-python.tar.gz").touch()
    assert submit("--model", "lenet", "--data", "cifar100", "--dry-run") == 0
    assert "is not in data" not in capsys.readouterr().out


def test_a_job_is_tested_then_submitted_and_its_files_are_named(cluster, capsys):
    cluster.install()
    assert submit("--model", "lenet") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "submitted    job 4242, lenet-default, with slurm/preemptible.sbatch",
        "run folder   runs/lenet-default-4242",
        "log          tail -F lenet-default-4242.out",
        "progress     python -m cifar_dist queue",
        "curves       python -m cifar_dist compare runs/lenet-default-4242 --follow",
        "stop         scancel 4242",
    ]
    words = shlex.split(GOLDEN["--model lenet"])[1:]
    assert [argv for argv, _ in cluster.calls()] == [["--test-only", *words], ["--parsable", *words]]


@pytest.mark.parametrize(
    ("options", "runs", "log", "count"),
    [
        (["--array-seeds", "5"], "runs/resnet20-default-4242_*", "resnet20-default-4242_0.out", 5),
        (["--sweep", "sengar2024"], "runs/sengar2024", "sengar2024-4242_0.out", 30),
    ],
)
def test_the_files_of_an_array_are_named(cluster, capsys, options, runs, log, count):
    cluster.install()
    cluster.answer(submit=(0, "4242;second_cluster\n", ""))
    assert submit(*options) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].startswith(f"submitted    job array 4242 of {count} runs, ")
    assert lines[1:3] == [f"run folders  {runs}", f"log          tail -F {log}"]
    assert lines[4] == f"curves       python -m cifar_dist compare {runs} --follow"


def test_what_the_site_sets_is_used_and_shown_unless_an_option_says_otherwise(cluster, capsys):
    cluster.install()
    cluster.site("export SBATCH_PARTITION=gpu SBATCH_ACCOUNT='two words' OTHER=1\necho loading; false\n")
    submit("--dry-run")
    assert capsys.readouterr().out.startswith("SBATCH_ACCOUNT='two words' SBATCH_PARTITION=gpu sbatch --job-name=")
    submit("--dry-run", "--partition", "big")
    assert capsys.readouterr().out.startswith("SBATCH_ACCOUNT='two words' sbatch --job-name=")
    assert [environment for _, environment in cluster.calls()] == [
        {"SBATCH_PARTITION": "gpu", "SBATCH_ACCOUNT": "two words"},
        {"SBATCH_ACCOUNT": "two words"},
    ]


def test_what_is_set_already_is_not_repeated(cluster, capsys, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    cluster.site("export SBATCH_PARTITION=gpu\n")
    submit("--dry-run")
    assert capsys.readouterr().out.startswith("sbatch --job-name=")


def test_the_shell_line_runs_what_submit_runs(cluster, capsys):
    cluster.install()
    cluster.site("export SBATCH_PARTITION=gpu\n")
    argv = ["--gpus-per-node", "0", "--output-dir", "runs/it's $HOME"]
    submit(*argv, "--dry-run")
    line = capsys.readouterr().out.splitlines()[0]
    subprocess.run(["bash", "-c", line], check=True, capture_output=True)
    submit(*argv)
    by_hand, submitted = cluster.calls()[1], cluster.calls()[3]
    assert by_hand == [submitted[0][1:], submitted[1]]
    assert by_hand[1] == {"SBATCH_PARTITION": "gpu", "GPUS_PER_NODE": "0"}


@pytest.mark.usefixtures("cluster")
def test_without_sbatch_it_says_what_to_do(capsys):
    assert submit() == 2
    assert capsys.readouterr().err == (
        "error: there is no sbatch on this machine; submit on a login node of the cluster (--dry-run shows the command here too), "
        "or train here with python train.py\n"
    )


REFUSALS = {  # of Slurm 22.05
    "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified\n": (
        "invalid partition specified: nope; Invalid partition name specified; "
        "sinfo -s lists the partitions; name one with --partition or in slurm/site.sh"
    ),
    "allocation failure: Requested node configuration is not available\n": (
        "Requested node configuration is not available; use fewer --nodes or --gpus-per-node "
        "(sinfo -o '%P %D %c %m %G' lists nodes, their CPUs, MB and GPUs), or, "
        "if nodes are down just now, queue it by hand with the command that --dry-run shows"
    ),
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n": (
        'Invalid account or account/partition combination specified; sacctmgr show assoc user="$USER" lists yours; '
        "name one with --account or in slurm/site.sh"
    ),
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)\n": (
        "Job violates accounting/QOS policy (job submit limit); "
        "a limit of your account; wait until some of your jobs have ended, or ask for less at once"
    ),
    "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)\n": (
        "Requested time limit is invalid (missing or exceeds some limit); "
        "sinfo -o '%P %l' lists the longest; use a shorter --time, a preemptible job goes on after it"
    ),
    "sbatch: error: Batch job submission failed: Invalid job array specification\n": (
        "Invalid job array specification; "
        "scontrol show config | grep MaxArraySize shows the longest; submit fewer tasks"
    ),
    "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification\n": (
        "Invalid generic resource (gres) specification; "
        "sinfo -o '%P %G' lists the GPUs; use another --gpus-per-node or --partition"
    ),
    "sbatch: error: Batch job submission failed: Invalid qos specification\n": (
        'Invalid qos specification; sacctmgr show assoc user="$USER" format=account,qos lists yours; set SBATCH_QOS in slurm/site.sh'
    ),
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n": (
        "Unable to contact slurm controller (connect failure); the controller does not answer; try again in a few minutes"
    ),
    "sbatch: error: ClusterName needs to be specified\nsbatch: fatal: Unable to process configuration file\n": (
        "ClusterName needs to be specified; Unable to process configuration file; "
        "sbatch is not set up on this machine; use a login node of the cluster"
    ),
    "our site plugin says no\n": "our site plugin says no; man sbatch explains its options",
    "": "no reason; man sbatch explains its options",
}


@pytest.mark.parametrize("stderr", REFUSALS)
@pytest.mark.parametrize("when", ["test", "submit"])
def test_what_slurm_refuses_becomes_one_line_with_a_way_out(cluster, capsys, stderr, when):
    cluster.install()
    cluster.answer(**{when: (1, "", stderr)})
    assert submit() == 2
    assert capsys.readouterr().err == f"error: sbatch refuses: {REFUSALS[stderr]}\n"
    assert len(cluster.calls()) == (1 if when == "test" else 2)  # what the test refuses is not submitted


def test_a_dry_run_fails_where_slurm_would_refuse_and_shows_the_command_anyway(cluster, capsys):
    cluster.install()
    cluster.answer(test=(1, "", "allocation failure: no\n"))
    assert submit("--model", "lenet", "--dry-run") == 2
    said = capsys.readouterr()
    assert said.out == GOLDEN["--model lenet"] + "\n"
    assert said.err == "error: sbatch refuses: no; man sbatch explains its options\n"


WRONG = {
    "--array-seeds 5 --sweep sengar2024": "--array-seeds and --sweep don't go together; name seed in the sweep file",
    "--throttle 2": "--throttle needs --array-seeds or --sweep",
    "--count 2": "--count needs --sweep",
    "--array-seeds 2 --seed 1": "--seed and --array-seeds don't go together; leave one out",
    "--array-seeds 2 --output-dir runs/x": (
        "--output-dir is one folder, and each seed needs its own; leave it out, --job-name names them all"
    ),
    "--array-seeds 2 --no-preemptible": (
        "--no-preemptible has no effect on a job array, whose runs always go on; leave it out"
    ),
    "--sweep sengar2024 --nodes 2": (
        "a run of a sweep is one process on one node; leave --nodes and --gpus-per-node out"
    ),
    "--sweep sengar2024 --resume auto": "--resume has no effect: a sweep always goes on; leave it out",
    "--resume never": (
        "--resume never would start over whenever the job is requeued; leave it out, each job has a folder of its own"
    ),
    "--job-name a/b": "--job-name a/b would be a file's name; use letters, digits, . _ + and - only",
    "--nodes 0": "--nodes must be greater than 0, got 0",
    "--time soon": "--time soon is not a time; use 30m, 2h, 1d12h, or Slurm's HH:MM:SS or D-HH:MM:SS",
    "--time 2:00": "--time 2:00 is too short: the run stops 120 s before it, to save a checkpoint",
    "--time 0": "--time 0 is too short: the run stops 120 s before it, to save a checkpoint",
    "--nodes 4 --gpus-per-node 8 --batch-size 16": "--batch-size 16 is smaller than the 32 processes; use 32 or more",
    "--gpus-per-node 3 --exact-shards 2": "--exact-shards 2 are fewer than the 3 processes; use 3 or more",
    "--model resnet81": None,  # as train.py has it
    "--epochs 2 --steps 3": None,
    "--data /no/such": (
        "--data /no/such is not a folder here; give one that is, or add --data-on-nodes where only the nodes have it"
    ),
    "--sweep sengar": None,
    "--sweep sengar2024 --exact-shards 900": None,
    "--nodez 2": "unknown option '--nodez'. Did you mean '--nodes'? --help lists them all",
}


@pytest.mark.parametrize("options", WRONG)
def test_what_is_wrong_is_said_before_anything_is_submitted(cluster, capsys, options):
    cluster.install()
    assert submit(*shlex.split(options)) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and said.startswith("error: ")
    if WRONG[options]:
        assert said == f"error: {WRONG[options]}\n"
    assert not cluster.calls()


@pytest.mark.usefixtures("cluster")
def test_a_job_that_goes_on_with_a_run_must_fit_it(capsys, train):
    result = train("--steps", "4")
    where = ["--output-dir", str(result.folder), "--dry-run"]
    assert submit(*where) == 2
    assert "is finished, so nothing is left to do" in capsys.readouterr().err
    (result.folder / "summary.json").write_text('{"status": "interrupted"}')
    assert submit(*where, "--model", "resnet18") == 2
    assert "has --model lenet, not resnet18; leave --model out to go on" in capsys.readouterr().err
    assert submit(*where) == 0
    assert "--job-name=lenet-default" in capsys.readouterr().out  # not the model that would be the default


def test_another_folder_is_refused_because_paths_in_the_templates_are_relative(cluster, capsys, monkeypatch):
    monkeypatch.chdir(cluster.root.parent)
    assert submit("--dry-run") == 2
    root = cluster.root
    assert capsys.readouterr().err == (
        f"error: the templates, and relative paths in a job, start from {root}; cd there first\n"
    )


def test_a_package_without_its_templates_is_refused(cluster, capsys):
    (cluster.root / "slurm" / "preemptible.sbatch").unlink()
    assert submit("--dry-run") == 2
    assert "run the package from its repository" in capsys.readouterr().err


def test_a_site_file_that_ends_the_shell_is_refused(cluster, capsys):
    cluster.site("echo no such module >&2\nexit 3\n")
    assert submit("--dry-run") == 2
    site = cluster.root / "slurm" / "site.sh"
    assert capsys.readouterr().err == (
        f"error: {site} ends the shell that sources it: no such module; leave exit and set -e out of it\n"
    )


def test_a_site_file_that_hangs_is_refused(cluster, capsys, monkeypatch):
    monkeypatch.setattr(sbatch, "SITE_TIMEOUT_S", 0.2)
    cluster.site("while :; do :; done\n")
    assert submit("--dry-run") == 2
    assert "took longer than 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "slurm"),
    [  # the lower half: man sbatch, --time
        ("90m", "01:30:00"),
        ("2h", "02:00:00"),
        ("1d12h", "1-12:00:00"),
        ("1h30m", "01:30:00"),
        ("36h", "1-12:00:00"),
        ("30", "00:30:00"),
        ("90:30", "01:30:30"),
        ("4:30:15", "04:30:15"),
        ("2-6", "2-06:00:00"),
        ("2-6:30", "2-06:30:00"),
        ("2-6:30:15", "2-06:30:15"),
    ],
)
def test_times_mean_what_slurm_means(text, slurm):
    assert slurm_time(time_limit(text)) == slurm


@pytest.mark.parametrize("text", ["", "h", "2x", "1:2:3:4", "-3", "m30", "1.5h", "2h30", "UNLIMITED"])
def test_what_is_not_a_time_is_refused(text):
    with pytest.raises(UserError, match="is not a time"):
        time_limit(text)


@pytest.mark.usefixtures("cluster")
def test_help_names_the_commands_own_options_first(capsys):
    with pytest.raises(SystemExit):
        submit_command.main(["--help"])
    shown = capsys.readouterr().out
    assert shown.index("--array-seeds") < shown.index("--model ")
