"""Shared fixtures and hooks: a seed option, repeated tests with a stated false alarm rate, and a cache folder.

Statistical tests fail by chance at a stated rate. Tests marked `chance(p)` draw from `rng`, fail a correct program with
probability p at most, and are repeated once with new random numbers before they fail (p squared). The fewer than 60 others have
a rate of 1e-5 at most. In total, less than one in a thousand runs of the suite has a false alarm; the rate of the collected
tests is printed.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

from latentlab.data.dataset import Dataset
from latentlab.data.load import load_dataset
from latentlab.inference.array_calls import ArrayCalls

SEED = 20_240_229
THREADS = torch.get_num_threads()
REFERENCES = Path(__file__).resolve().parents[2] / "shared" / "references"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=SEED, help=f"seed of the random generator `rng` of the tests; default {SEED}")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')}"


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    try:
        return (yield)
    except AssertionError:
        if pyfuncitem.get_closest_marker("chance") is None:
            raise
    own = pyfuncitem._fixtureinfo.argnames
    pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in own})  # `rng` goes on from where it was
    return True


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str | list[str]:
    rates = [mark.args[0] for item in items if (mark := item.get_closest_marker("chance"))]
    return [] if not rates else f"false alarms of the {len(rates)} tests marked chance: {sum(p**2 for p in rates):.1e} a run"


@pytest.fixture(scope="session", autouse=True)
def _code(tmp_path_factory) -> None:
    """Compiles machine code once for all workers, in a temporary folder."""
    own = tmp_path_factory.getbasetemp()
    code = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "code"
    code.mkdir(exist_ok=True)
    os.environ["LATENTLAB_CACHE"] = str(code)


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every operation of recorded graphs by torch, also those on small arrays."""
    monkeypatch.setattr(ArrayCalls, "call_of", lambda self, node: None)


@pytest.fixture(scope="session")
def references() -> Path:
    """The folder of reference posteriors."""
    if not REFERENCES.is_dir():
        pytest.skip(f"reference posteriors are not there: {REFERENCES.name} beside the checkout")
    return REFERENCES


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator with the seed of the run (`--seed`), which also seeds torch; tests must pass with any seed."""
    torch.manual_seed(request.config.getoption("--seed"))
    return np.random.default_rng(request.config.getoption("--seed"))


@pytest.fixture(scope="session")
def iris() -> Dataset:
    return load_dataset("iris")


@pytest.fixture(scope="session")
def wine() -> Dataset:
    return load_dataset("wine")


@pytest.fixture(autouse=True)
def _same_threads():
    """Checks that tests leave the number of threads as it was at the start, since a resumed run depends on it."""
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    assert after == THREADS
