"""Functions of the mean position along which an embedding's error could be structured: linear, quadratic, smooth.

An error that is small at every unit can still be no error of the posterior's kind: a stretched axis errs in proportion to
the position, a bend in proportion to its square. Sums of errors weighted by such functions of the position show it.
"""

import numpy as np

N_SMOOTH = 8
LANDMARKS = 400
"""Units from which the kernel's eigenfunctions are found, and carried to the others by Nystroem's formula."""
QUADRATIC_AXES = 10
"""Axes whose products are taken: their number grows with the square."""


def structure(mean: np.ndarray, rng: np.random.Generator, *, shift: bool = False) -> tuple[list[str], np.ndarray]:
    """The functions' names, and their values `(unit, function)`, of mean square 1; centred, but for the constant.

    Args:
        mean: Mean positions M in principal axes, `(unit, latent)`.
        rng: Chooses the landmarks where there are more than 400 units.
        shift: Whether the constant is among them: for positions that are not centred before they are compared.
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
    moves = size > 1e-9 * size.max()
    kept, scaled = [name for name, move in zip(names, moves, strict=True) if move], values[:, moves] / size[moves]
    return (["a shift of all units", *kept], np.column_stack([np.ones(len(mean)), scaled])) if shift else (kept, scaled)


def _smooth(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leading eigenfunctions `(unit, q)`, up to a constant, of a centred Gaussian kernel whose width is the median distance."""
    marks = mean if len(mean) <= LANDMARKS else mean[np.sort(rng.choice(len(mean), LANDMARKS, replace=False))]
    square = _squared_distances(marks, marks)
    width = np.median(square[np.triu_indices(len(marks), 1)])
    if width <= 0:
        return np.empty((len(mean), 0))
    kernel = np.exp(-square / (2 * width))
    column_mean = kernel.mean(axis=0)
    values, vectors = np.linalg.eigh(kernel - column_mean - column_mean[:, None] + kernel.mean())
    values, vectors = values[::-1][:N_SMOOTH], vectors[:, ::-1][:, :N_SMOOTH]
    kept = values > 1e-9 * values[0]
    parts = [np.exp(-_squared_distances(mean[i : i + 4096], marks) / (2 * width)) for i in range(0, len(mean), 4096)]
    return np.concatenate([part @ (vectors[:, kept] / values[kept]) for part in parts])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0)
