"""Evaluate a run or a weights file: python eval.py --checkpoint runs/NAME. See --help and README.md."""

import sys

from cifar_dist.installed import needed

with needed():
    from cifar_dist.cli.evaluate import main
    from cifar_dist.exits import finish

if __name__ == "__main__":
    finish(main(sys.argv[1:]))
