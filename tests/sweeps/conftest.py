"""Fixtures of the tests of sweeps."""

import pytest
from patching import everywhere

import latentlab.study.run  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def _no_pages():
    """No pages of runs in this process; the plugins of workers do the same."""
    with pytest.MonkeyPatch.context() as patch:
        everywhere(patch, "latentlab.study", "write_page", lambda run, **_: run.path)
        yield
