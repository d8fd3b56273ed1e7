"""Functions of the mean position that detect structured errors of an embedding: linear, quadratic, smooth.

Errors that are small at every unit can still be improbable under the posterior if they depend on the position. The errors of a
stretched axis are proportional to the position, those of a bent axis to its square. Sums of the errors weighted by such functions
of the position detect this.
"""

import numpy as np

N_SMOOTH = 8
LANDMARKS = 400
"""Largest number of units from which the eigenfunctions of the kernel are computed; the Nystroem formula extends them."""
QUADRATIC_AXES = 10
"""Largest number of axes whose products are used; the number of products grows with its square."""


def structure(mean: np.ndarray, rng: np.random.Generator, *, shift: bool = False) -> tuple[list[str], np.ndarray]:
    """Return the names of the functions and their values `(unit, function)`, with mean square 1.

    All functions except the constant have mean 0. Functions that do not vary over the units are omitted.

    Args:
        mean: Mean positions M in principal axes, `(unit, latent)`.
        rng: Random generator for the landmarks, used if there are more than 400 units.
        shift: Whether to include the constant function, for positions that are not centred before comparison.
    """
    d = mean.shape[1]
    axes = [f"axis {j + 1}" for j in range(d)]
    products = [(i, j) for i in range(min(d, QUADRATIC_AXES)) for j in range(i + 1)]
    names = [f"linear in {axis}" for axis in axes]
    names += [f"quadratic in {axes[i]}" if i == j else f"proportional to {axes[j]} x {axes[i]}" for i, j in products]
    smooth = _smooth(mean, rng)
    names += [f"nonlinear in the positions (kernel principal component {q + 1})" for q in range(smooth.shape[1])]
    values = np.column_stack([mean, *(mean[:, i] * mean[:, j] for i, j in products), smooth])
    values = values - values.mean(axis=0)
    size = np.sqrt((values**2).mean(axis=0))
    varies = size > 1e-9 * size.max()
    kept, scaled = [name for name, varying in zip(names, varies, strict=True) if varying], values[:, varies] / size[varies]
    return (["a shift of all units", *kept], np.column_stack([np.ones(len(mean)), scaled])) if shift else (kept, scaled)


def _smooth(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leading eigenfunctions `(unit, q)`, up to a constant, of a centred Gaussian kernel with the median distance as width."""
    landmarks = mean if len(mean) <= LANDMARKS else mean[np.sort(rng.choice(len(mean), LANDMARKS, replace=False))]
    square = _squared_distances(landmarks, landmarks)
    width = np.median(square[np.triu_indices(len(landmarks), 1)])
    if width <= 0:
        return np.empty((len(mean), 0))
    kernel = np.exp(-square / (2 * width))
    column_mean = kernel.mean(axis=0)
    values, vectors = np.linalg.eigh(kernel - column_mean - column_mean[:, None] + kernel.mean())
    values, vectors = values[::-1][:N_SMOOTH], vectors[:, ::-1][:, :N_SMOOTH]
    kept = values > 1e-9 * values[0]
    parts = [np.exp(-_squared_distances(mean[i : i + 4096], landmarks) / (2 * width)) for i in range(0, len(mean), 4096)]
    return np.concatenate([part @ (vectors[:, kept] / values[kept]) for part in parts])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0)
