"""Train CIFAR-10 classifiers on one CPU, one GPU, many GPUs or a cluster, with the same numbers on all of them."""

__version__ = "0.1.0"
