"""eval.py in blocks of 40 images, so that a small set is shared by several ranks and leaves some without any."""

import sys

from cifar_dist import engine
from cifar_dist.cli.evaluate import main

if __name__ == "__main__":
    engine.EVAL_BLOCK = 40
    sys.exit(main(sys.argv[1:]))
