"""The real tables that come with scikit-learn, as raw values."""

from typing import Any

import numpy as np

from latentlab.data.dataset import Dataset


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


def digits(columns: list[str] | None = None) -> Dataset:
    """Handwritten digits, 1797 images of 8 by 8 pixels: 64 columns `pixel_ROW_COLUMN`, three of them constant.

    Standardising needs `drop_constant`, for the pixels that are blank in every image.

    References:
        Alpaydin and Kaynak, Cascading classifiers (1998); UCI, CC BY 4.0.

    Example:
        >>> digits().standardize(drop_constant=True).dropped
        ('pixel_0_0', 'pixel_4_0', 'pixel_4_7')
    """
    from sklearn.datasets import load_digits

    return _table("digits", load_digits(), columns)


def _table(name: str, bunch: Any, columns: list[str] | None) -> Dataset:
    dataset = Dataset(
        {"x": bunch.data},
        dims={"x": ("unit", "feature")},
        coords={"feature": [str(feature) for feature in bunch.feature_names]},
        labels=np.asarray(bunch.target_names)[bunch.target],
        name=name,
    )
    return dataset if columns is None else dataset.select_features(columns)
