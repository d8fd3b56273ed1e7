"""Command line: `latentlab COMMAND`. Libraries are imported when a command runs, so that help and lists are fast."""

from latentlab.cli.entry import main as main
