"""Shared by all tests: a seed that can be chosen, false alarms that are counted, and nothing left behind.

Tests of random numbers fail now and then by chance. Each states its rate: those marked `chance(p)` draw from `rng`, fail a sound
program with probability p at most, and are run once more on further numbers before they fail (p squared). The others have a rate
of 1e-5 at most, by their bound; there are fewer than 60. All together raise less than one false alarm in a thousand runs of the
suite; the sum over the collected tests is printed before they run.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest

SEED = 20_240_229
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
    """Machine code is made anew once for all workers, and is not left in the user's folder."""
    own = tmp_path_factory.getbasetemp()
    code = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "code"
    code.mkdir(exist_ok=True)
    os.environ["LATENTLAB_CACHE"] = str(code)


@pytest.fixture(scope="session")
def references() -> Path:
    """The folder of posteriors with known answers."""
    if not REFERENCES.is_dir():
        pytest.skip(f"reference posteriors are not there: {REFERENCES.name} beside the checkout")
    return REFERENCES


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of the seed of the whole run (`--seed`); a test that uses it passes with any."""
    return np.random.default_rng(request.config.getoption("--seed"))
