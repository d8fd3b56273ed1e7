"""The command line, for `python -m latentlab` and `torchrun -m latentlab`."""

import sys

from latentlab.cli import main

sys.exit(main())
