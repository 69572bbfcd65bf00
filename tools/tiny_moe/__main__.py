"""`python -m tiny_moe NAME=VALUE ...`, from the folder tools."""

import sys

from tiny_moe.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
