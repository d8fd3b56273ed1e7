"""Tests of the simulated flow: lengths against points in the cross-section that are sorted by height or radius."""

import numpy as np
import pytest

from latentlab.data import pipe
from latentlab.data.pipe import three_phase_flow
from latentlab.errors import DataError

N_POINTS = 2000
"""Points of each beam, and points along a side of the square around the pipe."""


def lengths_of_points(kind, share):
    """Lengths `(beam, phase)` of one cross-section: phases fill the points in order of height, or of radius."""
    side = np.linspace(-1, 1, N_POINTS)
    u, v = np.meshgrid(side, side)
    inside = u**2 + v**2 < 1

    def rank(a, b):
        return {"stratified": b, "annular": -(a**2 + b**2)}[kind]

    order = np.sort(rank(u, v)[inside])  # water first, then oil, then gas
    edges = np.quantile(order, [share[1], share.sum()])
    found = []
    for vertical in (True, False):
        for offset in pipe.OFFSETS:
            chord = np.sqrt(1 - offset**2)
            along = chord * (2 * (np.arange(N_POINTS) + 0.5) / N_POINTS - 1)
            a, b = (np.full(N_POINTS, offset), along) if vertical else (along, np.full(N_POINTS, offset))
            phase = np.searchsorted(edges, rank(a, b))
            found.append([2 * chord * (phase == 1).mean(), 2 * chord * (phase == 0).mean()])
    return np.array(found)


@pytest.mark.parametrize("kind", ["stratified", "annular"])
def test_lengths_are_those_of_points_in_the_cross_section(kind, rng):
    shares = rng.dirichlet(np.ones(3), 6)[:, :2]
    found = getattr(pipe, kind)(shares)
    for share, lengths in zip(shares, found, strict=True):
        expected = lengths_of_points(kind, share)
        if kind == "stratified":  # a horizontal beam on the edge of a layer is in either of the two
            near = np.abs(pipe.OFFSETS - pipe._height(np.array([share[1], share.sum()]))[:, None]).min(0) < 0.01
            lengths, expected = (np.delete(values, 3 + np.flatnonzero(near), 0) for values in (lengths, expected))
        np.testing.assert_allclose(lengths, expected, atol=0.1)  # a beam that almost touches a ring is sensitive


def test_lengths_in_the_three_phases_are_at_most_the_chord():
    dataset = three_phase_flow(n_units=500, noise=0.0)
    lengths = dataset.x.reshape(500, 6, 2)
    assert (lengths >= 0).all()
    assert (lengths.sum(-1) <= pipe.CHORDS + 1e-12).all()
    assert set(dataset.labels) == set(pipe.CONFIGURATIONS)


def test_a_mixture_of_phases_has_the_shares_of_the_pipe():
    dataset = three_phase_flow(n_units=300, noise=0.0)
    mixed = dataset.labels == "homogeneous"
    shares = dataset.x.reshape(300, 6, 2)[mixed] / pipe.CHORDS[:, None]
    np.testing.assert_allclose(shares, np.broadcast_to(dataset.truth["z"][mixed][:, None], shares.shape), rtol=1e-12)


def test_noise_has_its_standard_deviation():
    """With 24 000 values: the tolerance is 7 standard errors."""
    exact, noisy = three_phase_flow(n_units=2000, noise=0.0), three_phase_flow(n_units=2000, noise=0.05)
    assert (noisy.x - exact.x).std() == pytest.approx(0.05, rel=7 / np.sqrt(2 * 24_000))


def test_a_wrong_option_is_refused():
    with pytest.raises(DataError, match="three_phase_flow: `noise` must be a finite number"):
        three_phase_flow(noise=-0.1)
