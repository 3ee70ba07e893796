import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.runs import ROOT

from cifar_dist.config import TrainConfig
from cifar_dist.models import forward_macs
from cifar_dist.runtime.cpu import WORTHWHILE_MACS, prepare_cpu, worth_onednn, worthwhile_threads

LENET = TrainConfig(model="lenet", epochs=1)
RESNET = TrainConfig(model="resnet20", epochs=1)


def threads(config: TrainConfig, world_size: int = 1, cores: int = 64) -> int:
    return worthwhile_threads(config, world_size, cores)


def test_small_steps_are_not_shared_out_and_large_ones_are():
    assert threads(replace(LENET, batch_size=4)) == 1
    for cores in (1, 2, 8, 64):
        assert threads(RESNET, cores=cores) == cores


@pytest.mark.parametrize("model", ["lenet", "mlp", "som", "resnet110"])
def test_threads_grow_with_the_step_from_one_to_all_cores(model):
    counts = [threads(replace(LENET, model=model, batch_size=2**i), cores=6) for i in range(16)]
    assert counts == sorted(counts)
    assert 1 <= counts[0] <= counts[-1] == 6


def test_what_counts_is_what_a_process_computes_at_once():
    """By hand: as many threads as WORTHWHILE_MACS go into the images of a micro-batch, ."""
    per_thread = WORTHWHILE_MACS / forward_macs("lenet")
    for config, world_size, images in (
        (replace(LENET, batch_size=120), 1, 120),
        (replace(LENET, batch_size=120), 4, 30),
        (replace(LENET, batch_size=121), 4, 31),  # the largest share
        (replace(LENET, batch_size=120, micro_batch_size=20), 1, 20),
        (replace(LENET, batch_size=120, micro_batch_size=50), 4, 30),
    ):
        assert threads(config, world_size) == max(1, int(images / per_thread))


def test_equal_configurations_get_equal_threads_whatever_ran_before():
    first = threads(replace(LENET, batch_size=64))
    torch.set_num_threads(3)
    assert threads(replace(RESNET, model="lenet", batch_size=64)) == first
    assert threads(replace(LENET, batch_size=64, seed=5, lr=0.3)) == first


def test_exact_shards_are_computed_by_one_thread_whatever_a_process_has():
    assert threads(replace(RESNET, exact_shards=8)) == threads(replace(RESNET, exact_shards=8), 4) == 1


def test_threads_that_were_asked_for_are_taken():
    for given in (1, 3):
        prepare_cpu(replace(RESNET, threads=given), world_size=1, cores=2)
        assert torch.get_num_threads() == given
    prepare_cpu(replace(LENET, batch_size=4), world_size=1, cores=2)
    assert torch.get_num_threads() == 1


def test_only_plain_small_steps_do_without_onednn():
    small = replace(LENET, batch_size=4)
    images = -(-int(WORTHWHILE_MACS) // forward_macs("lenet"))  # the first batch that is worth it
    assert not worth_onednn(small, 1) and not worth_onednn(replace(LENET, batch_size=images - 1), 1)
    assert worth_onednn(replace(LENET, batch_size=images), 1) and worth_onednn(RESNET, 1)
    assert not worth_onednn(replace(LENET, batch_size=4 * images - 4), 4)
    exact = replace(LENET, batch_size=5 * (images - 1), exact_shards=4)  # a quarter more, rounded up
    assert all(worth_onednn(exact, world_size) for world_size in (1, 2, 4))
    assert not any(worth_onednn(replace(exact, exact_shards=8), world_size) for world_size in (1, 2, 4, 8))
    assert worth_onednn(replace(small, mixed_precision="bf16"), 1) and worth_onednn(replace(small, compile=True), 1)


FAULTS = """
import resource
import torch
from cifar_dist.runtime.cpu import keep_memory

def faults():
    for _ in range(6):  # until the heap has grown
        torch.ones(10**7)  # 40 MB: more than glibc ever keeps by itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10**7)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults())
keep_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory")
def test_memory_that_is_kept_is_not_fetched_from_the_system_again():
    result = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    given_back, kept = map(int, result.stdout.split())
    # 40 MB are 9,766 pages of 4 kB, or 20 where the system makes them 2 MB.
    assert given_back >= 5 * 19
    assert kept < given_back / 2  # a system short of memory takes pages away, too
