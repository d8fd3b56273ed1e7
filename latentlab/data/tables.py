"""Real tables of scikit-learn, as raw values. The files are read without an import of scikit-learn, which would be slow."""

import importlib.util
from pathlib import Path

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError
from latentlab.seeds import Seeds

WINE = (
    *("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids", "nonflavanoid_phenols"),
    *("proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines", "proline"),
)
IRIS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
NUCLEUS = (
    *("radius", "texture", "perimeter", "area", "smoothness", "compactness"),
    *("concavity", "concave points", "symmetry", "fractal dimension"),
)
BREAST_CANCER = (*(f"mean {one}" for one in NUCLEUS), *(f"{one} error" for one in NUCLEUS), *(f"worst {one}" for one in NUCLEUS))
PIXELS = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))


def wine(columns: list[str] | None = None) -> Dataset:
    """Chemical analysis of 178 wines of three cultivars: 13 columns.

    References:
        Forina et al., PARVUS (1988); UCI repository, CC BY 4.0.

    Example:
        >>> dataset = wine()
        >>> dataset.sizes, dataset.features[0].item(), dataset.x[0, 0].item()
        ({'unit': 178, 'feature': 13}, 'alcohol', 14.23)
    """
    return _table("wine", *_classified("wine_data.csv"), WINE, columns)


def iris(columns: list[str] | None = None) -> Dataset:
    """Lengths and widths of sepals and petals of 150 irises of three species: 4 columns.

    References:
        Fisher, The use of multiple measurements in taxonomic problems (1936).
    """
    return _table("iris", *_classified("iris.csv"), IRIS, columns)


def breast_cancer(columns: list[str] | None = None) -> Dataset:
    """Cell nuclei in 569 images of breast tissue, malignant or benign: 30 columns.

    References:
        Street, Wolberg and Mangasarian, Nuclear feature extraction for breast tumor diagnosis (1993); UCI, CC BY 4.0.
    """
    return _table("breast_cancer", *_classified("breast_cancer.csv"), BREAST_CANCER, columns)


def digits(columns: list[str] | None = None, *, dequantize: bool = False, seed: int = 0) -> Dataset:
    """Handwritten digits, 1797 images of 8 by 8 pixels: 64 columns `pixel_ROW_COLUMN`, three of them constant.

    Standardising requires `drop_constant`, since some pixels are blank in every image.

    A pixel x is a whole number from 0 to 16. The likelihood of a continuous density is unbounded on such data, since it can
    concentrate on the whole numbers. Dequantised pixels are (x + u) / 17 with u uniform from 0 to 1. Up to a constant, the log
    density averaged over u is a lower bound on the log probability of the whole numbers. No dequantised pixel is constant.

    Args:
        columns: Some of the pixels; all if not given.
        dequantize: Add uniform noise and scale to the unit interval.
        seed: Seed of the noise.

    Raises:
        DataError: A column does not exist, or an option has a wrong type.

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
    if not isinstance(dequantize, bool):
        raise DataError(f"digits: `dequantize` must be true or false; got {dequantize!r}.")
    rows = np.loadtxt(_path("digits.csv.gz"), delimiter=",")
    x, labels = rows[:, :-1], rows[:, -1].astype(int)
    if dequantize:
        x = (x + Seeds(seed).child("digits").numpy().random(x.shape)) / 17
    return _table("digits", x, labels, PIXELS, columns)


def _path(file: str) -> Path:
    """Path of a data file of scikit-learn, which is located without importing it."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError(f"{file} is a file of scikit-learn, which is not installed; install scikit-learn.")
    return Path(spec.origin).parent / "datasets" / "data" / file


def _classified(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Read data and classes; the first line contains numbers of rows and columns and the classes, the last column the class."""
    path = _path(file)
    with path.open(encoding="utf-8") as lines:
        classes = next(lines).strip().split(",")[2:]
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
    return rows[:, :-1], np.asarray(classes)[rows[:, -1].astype(int)]


def _table(name: str, x: np.ndarray, labels: np.ndarray, features: tuple[str, ...], columns: list[str] | None) -> Dataset:
    dims = {"x": ("unit", "feature")}
    dataset = Dataset({"x": x}, dims=dims, coords={"feature": list(features)}, labels=labels, name=name)
    return dataset if columns is None else dataset.select_features(columns)
