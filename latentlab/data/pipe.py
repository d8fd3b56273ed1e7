r"""Simulated measurements of three-phase flow in a pipe: the lengths of beams in oil and in water."""

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.data.simulators import counts, number
from latentlab.seeds import Seeds

OFFSETS = np.array([-0.5, 0.0, 0.5])
"""Distances of the three vertical and the three horizontal beams from the axis of the pipe, in its radii."""
CHORDS = 2 * np.sqrt(1 - np.concatenate([OFFSETS, OFFSETS]) ** 2)
"""Length of each beam in the pipe: vertical beams, then horizontal ones."""
CONFIGURATIONS = ("homogeneous", "stratified", "annular")


def three_phase_flow(n_units: int = 1000, noise: float = 0.02, seed: int = 0) -> Dataset:
    r"""Oil, water and gas in a pipe of radius 1, measured by six beams, in three configurations of the flow.

    The shares of oil and water in the cross-section are the true coordinates, uniform on the simplex. Features are the lengths of
    each beam in oil and in water, plus noise. Beams are vertical at -0.5, 0 and 0.5 of the radius, and horizontal at the same
    heights. The `labels` are the configurations, with equal probabilities:

    * `homogeneous`: the phases are mixed, so that each beam has the shares of the pipe;
    * `stratified`: water lies below oil, and oil below gas;
    * `annular`: gas in the middle, surrounded by oil, which is surrounded by water.

    Within a configuration, the 12 features are functions of the two shares.

    Args:
        n_units: Number of units.
        noise: Standard deviation of the noise of each length, in radii, at least 0.
        seed: Random seed.

    References:
        Bishop & James (1993), Analysis of multiphase flows using dual-energy gamma densitometry and neural networks, Nuclear
        Instruments and Methods A 327:580. The measurements are simulated anew, with lengths instead of attenuations.

    Example:
        >>> three_phase_flow(n_units=5).x.shape
        (5, 12)
    """
    counts("three_phase_flow", n_units=n_units)
    number("three_phase_flow", "noise", noise, 0, np.inf)
    rng = Seeds(seed).child("three_phase_flow").numpy()
    shares = rng.dirichlet(np.ones(3), n_units)[:, :2]
    kind = rng.integers(3, size=n_units)
    lengths = np.stack([configuration(shares) for configuration in (homogeneous, stratified, annular)])
    x = lengths[kind, np.arange(n_units)].reshape(n_units, -1)
    beams = [f"{way} {offset:g}" for way in ("vertical", "horizontal") for offset in OFFSETS]
    return Dataset(
        {"x": x + noise * rng.standard_normal(x.shape)},
        dims={"x": ("unit", "feature")},
        coords={"feature": [f"{beam}, {phase}" for beam in beams for phase in ("oil", "water")]},
        labels=np.array(CONFIGURATIONS)[kind],
        truth={"z": shares},
        truth_dims={"z": ("unit", "latent")},
        name="three_phase_flow",
    )


def homogeneous(shares: np.ndarray) -> np.ndarray:
    """Lengths `(unit, beam, phase)` in oil and water of a mixture with these shares `(unit, phase)`."""
    return CHORDS[:, None] * shares[:, None, :]


def stratified(shares: np.ndarray) -> np.ndarray:
    """Lengths in layers: water below `low`, oil from there to `high`, and gas above."""
    oil, water = shares.T
    low, high = _height(water), _height(water + oil)
    half = CHORDS[:3] / 2
    in_water = np.clip(low[:, None] + half, 0, 2 * half)  # vertical beams go from -half to half
    in_liquid = np.clip(high[:, None] + half, 0, 2 * half)
    under_low, under_high = low[:, None] > OFFSETS, high[:, None] > OFFSETS
    water_lengths = np.column_stack([in_water, CHORDS[3:] * under_low])
    oil_lengths = np.column_stack([in_liquid - in_water, CHORDS[3:] * (under_high & ~under_low)])
    return np.stack([oil_lengths, water_lengths], -1)


def annular(shares: np.ndarray) -> np.ndarray:
    """Lengths in rings: gas in a disc, oil around it, and water at the wall."""
    oil, water = shares.T

    def inside(area: np.ndarray) -> np.ndarray:
        """Length of each beam in the central disc with a share of the area; the squared radius is this share."""
        squares = area[:, None] - np.concatenate([OFFSETS, OFFSETS]) ** 2
        return np.asarray(2 * np.sqrt(np.maximum(squares, 0.0)))

    gas, liquid = inside(1 - oil - water), inside(1 - water)
    return np.stack([liquid - gas, CHORDS - liquid], -1)


def _height(area: np.ndarray) -> np.ndarray:
    """Height below which a share of the area of the unit disc lies, by interpolation of 10 001 heights."""
    h = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 10_001))
    below = 0.5 + (h * np.sqrt(1 - h**2) + np.arcsin(h)) / np.pi
    return np.interp(area, below, h)
