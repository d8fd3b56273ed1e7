r"""Simulated sheets and curves in three dimensions, with the true coordinates of each unit on the manifold."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.data.simulators import counts, number
from latentlab.errors import DataError
from latentlab.seeds import Seeds

FEATURES = ["x", "y", "z"]
Map = Callable[[np.ndarray], np.ndarray]


def swiss_roll(
    n_units: int = 1000,
    noise: float = 0.05,
    hole: float = 0.0,
    density: Literal["sheet", "angle"] = "sheet",
    seed: int = 0,
) -> Dataset:
    r"""A flat sheet that is rolled up: units on a spiral times an interval.

    $$x = (t \cos t, \; h, \; t \sin t) + \sigma \varepsilon, \quad t \in [3\pi/2, 9\pi/2], \quad h \in [0, 21]$$

    The true coordinates are the arc length of the spiral, $s(t) = \frac12 (t \sqrt{1 + t^2} + \mathrm{arsinh}\, t)$, and h. Both
    have the units of the features, and distances on the sheet are those of the coordinates.

    Args:
        n_units: Number of units.
        noise: Standard deviation of the noise of each feature, at least 0.
        hole: Width of a rectangular hole in the middle of the sheet, as a share of both sides, from 0 to less than 1.
        density: `sheet`, uniform on the sheet; or `angle`, uniform in t, so that the outer turns have fewer units.
        seed: Random seed.

    References:
        Tenenbaum, de Silva & Langford (2000), Science 290:2319.

    Example:
        >>> dataset = swiss_roll(n_units=5, noise=0.0)
        >>> bool(np.allclose(dataset.x[:, 1], dataset.truth["z"][:, 1]))
        True
    """
    name, low, high = "swiss_roll", 1.5 * np.pi, 4.5 * np.pi
    number(name, "hole", hole, 0, np.nextafter(1, 0))
    if density not in ("sheet", "angle"):
        raise DataError(f"{name}: `density` must be 'sheet' or 'angle'; got {density!r}.")
    ends = np.array([[_spiral(low), 0.0], [_spiral(high), 21.0]])

    def place(u: np.ndarray) -> np.ndarray:
        along = _spiral(low + u[:, 0] * (high - low)) if density == "angle" else ends[0, 0] + u[:, 0] * np.ptp(ends[:, 0])
        return np.column_stack([along, 21.0 * u[:, 1]])

    def outside(z: np.ndarray) -> np.ndarray:
        return (np.abs((z - ends.mean(0)) / np.ptp(ends, axis=0)) * 2 >= hole).any(1)

    def embed(z: np.ndarray) -> np.ndarray:
        t = _angle(z[:, 0])
        return np.column_stack([t * np.cos(t), z[:, 1], t * np.sin(t)])

    return _simulated(name, n_units, noise, seed, 2, place, embed, outside)


def s_curve(n_units: int = 1000, noise: float = 0.05, hole: float = 0.0, seed: int = 0) -> Dataset:
    r"""A flat sheet that is bent to the shape of an S: two arcs of radius 1, times an interval.

    $$x = (\sin t, \; h, \; \mathrm{sign}(t) (\cos t - 1)) + \sigma \varepsilon,
       \quad t \in [-3\pi/2, 3\pi/2], \quad h \in [0, 2]$$

    The true coordinates t and h are lengths on the sheet, in the units of the features. Units are uniform on the sheet.

    Args:
        n_units: Number of units.
        noise: Standard deviation of the noise of each feature, at least 0.
        hole: Width of a rectangular hole in the middle of the sheet, as a share of both sides, from 0 to less than 1.
        seed: Random seed.

    Example:
        >>> s_curve(n_units=5).truth["z"].shape
        (5, 2)
    """
    number("s_curve", "hole", hole, 0, np.nextafter(1, 0))

    def embed(z: np.ndarray) -> np.ndarray:
        t = z[:, 0]
        return np.column_stack([np.sin(t), z[:, 1], np.sign(t) * (np.cos(t) - 1)])

    def place(u: np.ndarray) -> np.ndarray:
        return np.column_stack([1.5 * np.pi * (2 * u[:, 0] - 1), 2 * u[:, 1]])

    def outside(z: np.ndarray) -> np.ndarray:
        return (np.abs(z - [0.0, 1.0]) / [1.5 * np.pi, 1.0] >= hole).any(1)

    return _simulated("s_curve", n_units, noise, seed, 2, place, embed, outside)


def severed_sphere(n_units: int = 1000, noise: float = 0.05, seed: int = 0) -> Dataset:
    r"""The unit sphere without its poles and a slice between them.

    $$x = (\sin\theta \cos\varphi, \; \sin\theta \sin\varphi, \; \cos\theta) + \sigma \varepsilon,
       \quad \varphi \in [0, 2\pi - 0.55], \quad \theta \in [\pi/8, 7\pi/8]$$

    The true coordinates are the angles $\varphi$ and $\theta$. No map to the plane keeps all distances. Units are uniform on the
    sphere.

    Args:
        n_units: Number of units.
        noise: Standard deviation of the noise of each feature, at least 0.
        seed: Random seed.

    Example:
        >>> dataset = severed_sphere(n_units=5, noise=0.0)
        >>> bool(np.allclose((dataset.x**2).sum(1), 1.0))
        True
    """

    def place(u: np.ndarray) -> np.ndarray:
        return np.column_stack([(2 * np.pi - 0.55) * u[:, 0], np.arccos(np.cos(np.pi / 8) * (1 - 2 * u[:, 1]))])

    def embed(z: np.ndarray) -> np.ndarray:
        longitude, polar = z.T
        return np.column_stack([np.sin(polar) * np.cos(longitude), np.sin(polar) * np.sin(longitude), np.cos(polar)])

    return _simulated("severed_sphere", n_units, noise, seed, 2, place, embed)


def torus_patch(n_units: int = 1000, noise: float = 0.05, ratio: float = 2.5, seed: int = 0) -> Dataset:
    r"""Three quarters of a torus' turn and half of its tube.

    $$x = ((\rho + \cos v) \cos u, \; (\rho + \cos v) \sin u, \; \sin v) + \sigma \varepsilon,
       \quad u \in [0, 3\pi/2], \quad v \in [-\pi/2, \pi/2]$$

    The true coordinates are the angles u and v. Units are uniform on the surface.

    Args:
        n_units: Number of units.
        noise: Standard deviation of the noise of each feature, at least 0.
        ratio: Radius rho of the torus, for a tube of radius 1; greater than 1.
        seed: Random seed.

    Example:
        >>> torus_patch(n_units=5).x.shape
        (5, 3)
    """
    number("torus_patch", "ratio", ratio, np.nextafter(1, 2), np.inf)

    def place(u: np.ndarray) -> np.ndarray:
        grid = np.linspace(-np.pi / 2, np.pi / 2, 10_001)
        share = (ratio * (grid + np.pi / 2) + np.sin(grid) + 1) / (ratio * np.pi + 2)
        return np.column_stack([1.5 * np.pi * u[:, 0], np.interp(u[:, 1], share, grid)])

    def embed(z: np.ndarray) -> np.ndarray:
        u, v = z.T
        return np.column_stack([(ratio + np.cos(v)) * np.cos(u), (ratio + np.cos(v)) * np.sin(u), np.sin(v)])

    return _simulated("torus_patch", n_units, noise, seed, 2, place, embed)


def helix(n_units: int = 500, noise: float = 0.05, turns: float = 3.0, pitch: float = 1.0, seed: int = 0) -> Dataset:
    r"""A curve that winds around an axis, $x = (\cos t, \sin t, p t / 2\pi) + \sigma \varepsilon$, $t \in [0, 2\pi k]$.

    The true coordinate is arc length, $t \sqrt{1 + (p / 2\pi)^2}$, in the units of the features. Units are uniform on the curve.

    Args:
        n_units: Number of units.
        noise: Standard deviation of the noise of each feature, at least 0.
        turns: Number of turns k, greater than 0.
        pitch: Height p of a turn, at least 0.
        seed: Random seed.

    Example:
        >>> helix(n_units=5).truth["z"].shape
        (5, 1)
    """
    number("helix", "turns", turns, np.nextafter(0, 1), np.inf)
    number("helix", "pitch", pitch, 0, np.inf)
    speed = np.sqrt(1 + (pitch / (2 * np.pi)) ** 2)

    def embed(z: np.ndarray) -> np.ndarray:
        t = z[:, 0] / speed
        return np.column_stack([np.cos(t), np.sin(t), pitch * t / (2 * np.pi)])

    return _simulated("helix", n_units, noise, seed, 1, lambda u: 2 * np.pi * turns * speed * u, embed)


def _spiral(t: np.ndarray | float) -> np.ndarray:
    """Length of the spiral from its centre to angle t."""
    return np.asarray(0.5 * (t * np.sqrt(1 + np.square(t)) + np.arcsinh(t)))


def _angle(length: np.ndarray) -> np.ndarray:
    """Angle at which the spiral has a given length, by Newton's method."""
    t = np.sqrt(2 * length)
    for _ in range(20):
        t = t - (_spiral(t) - length) / np.sqrt(1 + t**2)
    return t


def _simulated(  # one argument for each part of a simulator
    name: str,
    n_units: int,
    noise: float,
    seed: int,
    q: int,
    place: Map,
    embed: Map,
    outside: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Dataset:
    """Place units at uniform numbers, drop those in the hole, and add noise to their embedding."""
    counts(name, n_units=n_units)
    number(name, "noise", noise, 0, np.inf)
    rng = Seeds(seed).child(name).numpy()
    found: list[np.ndarray] = []
    while sum(map(len, found)) < n_units:
        z = place(rng.random((n_units, q)))
        found.append(z if outside is None else z[outside(z)])
    z = np.concatenate(found)[:n_units]
    return Dataset(
        {"x": embed(z) + noise * rng.standard_normal((n_units, 3))},
        dims={"x": ("unit", "feature")},
        coords={"feature": FEATURES},
        truth={"z": z},
        truth_dims={"z": ("unit", "latent")},
        name=name,
    )
