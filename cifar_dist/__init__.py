"""Train CIFAR-10 classifiers on one CPU, one GPU, many GPUs or a cluster, with the same numbers on all of them."""

import os

__version__ = "0.1.0"

# Before torch loads OpenMP: how often a thread looks for more work before it sleeps. By default it looks for milliseconds,
# in which a thread that waits for another keeps that one off a core that something else uses too (docs/PERFORMANCE.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
