"""Command line as `python -m latentlab.cli`."""

import sys

from latentlab.cli.entry import main

sys.exit(main())
