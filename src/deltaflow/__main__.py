"""`python -m deltaflow` is the command `deltaflow`."""

import sys

from deltaflow.cli import main

sys.exit(main())
