"""`python -m dali VERB`: the same as the command `dali`."""

import sys

from dali.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
