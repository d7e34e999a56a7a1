"""`python -m deltaflow` is the command `deltaflow`."""

import sys

from deltaflow.cli import main

if __name__ == "__main__":  # worker processes import this file under another name
    sys.exit(main())
