"""Tests of the completion in a shell, by the protocol of argcomplete in a separate process."""

import os
import subprocess
import sys

import pytest

from latentlab.registry import METHODS, MODELS

pytestmark = pytest.mark.fixed

PROGRAM = """
import os, sys
sys.argv[0] = "latentlab"
for descriptor in (8, 9):
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
from latentlab.cli import main
main()
"""


@pytest.fixture
def completed(tmp_path):
    (tmp_path / "toy.yaml").write_text("name: toy\nmodel: {name: ppca, n_latent: 2}\ninference: {name: nuts}\n")

    def complete(line):
        environment = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found"), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
        done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**os.environ, **environment}, timeout=120)
        assert done.returncode == 0
        return (tmp_path / "found").read_text().splitlines()

    return complete


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("latentlab sw", ["sweep"]),
        ("latentlab run --stri", ["--strict"]),
        ("latentlab list mod", ["models"]),
        ("latentlab list models ", list(MODELS)),
        ("latentlab list models vae gaussian_m", ["gaussian_mixture"]),
        ("latentlab help factor", ["factor_analysis"]),
        ("latentlab help sel", ["select"]),
        ("latentlab init toy --model pp", ["ppca"]),
        ("latentlab init toy --model vae --method ", list(METHODS)),
        ("latentlab run toy.yaml inf", ["inference.", "inference.name="]),
        ("latentlab run toy.yaml inference.n_w", ["inference.n_warmup="]),
        ("latentlab run toy.yaml inference.name=svi inference.n_st", ["inference.n_steps="]),
        ("latentlab run none.yaml inference.n_w", []),
    ],
)
def test_words_are_completed(line, found, completed):
    words = [word.strip() for word in completed(line)]
    assert (
        [word for word in words if not word.startswith("-")] == found
        if not found or not found[0].startswith("-")
        else words == found
    )
