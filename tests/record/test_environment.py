import torch

from cifar_dist.record.environment import environment, git_commit


def test_the_commit_is_a_hash_or_nothing():
    commit = git_commit()
    assert commit is None or len(commit.rstrip("+")) == 40


def test_a_start_says_what_its_result_may_depend_on():
    here = environment(torch.device("cpu"), 3)
    assert torch.__version__.startswith(here["packages"]["torch"])
    assert (here["world_size"], here["threads_per_process"]) == (3, torch.get_num_threads())
