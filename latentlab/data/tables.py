"""The real tables that come with scikit-learn, as raw values."""

from typing import Any

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.seeds import Seeds


def wine(columns: list[str] | None = None) -> Dataset:
    """Chemical analysis of 178 wines of three cultivars: 13 columns.

    References:
        Forina et al., PARVUS (1988); UCI repository, CC BY 4.0.

    Example:
        >>> dataset = wine()
        >>> dataset.sizes, dataset.features[0].item(), dataset.x[0, 0].item()
        ({'unit': 178, 'feature': 13}, 'alcohol', 14.23)
    """
    from sklearn.datasets import load_wine

    return _table("wine", load_wine(), columns)


def iris(columns: list[str] | None = None) -> Dataset:
    """Sepals and petals of 150 irises of three species: 4 columns.

    References:
        Fisher, The use of multiple measurements in taxonomic problems (1936).
    """
    from sklearn.datasets import load_iris

    return _table("iris", load_iris(), columns)


def breast_cancer(columns: list[str] | None = None) -> Dataset:
    """Cell nuclei in 569 images of breast tissue, malignant or benign: 30 columns.

    References:
        Street, Wolberg and Mangasarian, Nuclear feature extraction for breast tumor diagnosis (1993); UCI, CC BY 4.0.
    """
    from sklearn.datasets import load_breast_cancer

    return _table("breast_cancer", load_breast_cancer(), columns)


def digits(columns: list[str] | None = None, *, dequantize: bool = False, seed: int = 0) -> Dataset:
    """Handwritten digits, 1797 images of 8 by 8 pixels: 64 columns `pixel_ROW_COLUMN`, three of them constant.

    Standardising needs `drop_constant`, for the pixels that are blank in every image.

    A pixel x is a whole number from 0 to 16, and a density has no upper bound on such data: it can pile up on the numbers.
    Dequantised pixels are (x + u) / 17 with u uniform from 0 to 1, spread evenly over the unit interval; a density of them bounds
    the probabilities of the whole numbers from below, and no pixel is constant.

    Args:
        columns: Some of the pixels; all if not given.
        dequantize: Add uniform noise and scale to the unit interval.
        seed: Seed of the noise.

    Raises:
        DataError: No such column; an option of another type.

    References:
        Alpaydin and Kaynak, Cascading classifiers (1998); UCI, CC BY 4.0. Theis, van den Oord & Bethge (2016), A
        note on the evaluation of generative models, ICLR.

    Example:
        >>> digits().standardize(drop_constant=True).dropped
        ('pixel_0_0', 'pixel_4_0', 'pixel_4_7')
        >>> soft = digits(dequantize=True).x
        >>> bool(0 <= soft.min() and soft.max() < 1 and (np.floor(17 * soft) == digits().x).all())
        True
    """
    from sklearn.datasets import load_digits

    if not isinstance(dequantize, bool):
        raise DataError(f"digits: `dequantize` must be true or false; got {dequantize!r}.")
    bunch = load_digits()
    if not dequantize:
        return _table("digits", bunch, columns)
    noise = Seeds(seed).child("digits").numpy().random(bunch.data.shape)
    return _table("digits", bunch, columns, (bunch.data + noise) / 17)


def _table(name: str, bunch: Any, columns: list[str] | None, x: np.ndarray | None = None) -> Dataset:
    dataset = Dataset(
        {"x": bunch.data if x is None else x},
        dims={"x": ("unit", "feature")},
        coords={"feature": [str(feature) for feature in bunch.feature_names]},
        labels=np.asarray(bunch.target_names)[bunch.target],
        name=name,
    )
    return dataset if columns is None else dataset.select_features(columns)
