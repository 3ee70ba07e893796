"""Train a CIFAR-10 classifier: python train.py --model resnet. See --help and README.md."""

import sys

from cifar_dist.installed import needed

with needed():
    from cifar_dist.cli.train import main
    from cifar_dist.exits import finish

if __name__ == "__main__":
    finish(main(sys.argv[1:]))
