"""Series: steps of one or several sequences, one after another on the dim `unit`."""

import numpy as np

from latentlab.data.dataset import Dataset
from latentlab.errors import DataError


def boundaries(dataset: Dataset) -> np.ndarray:
    """The number of the sequence of each unit `(unit,)`, from 0 in their order; all 0 without the coordinate `sequence`.

    Raises:
        DataError: The steps of a sequence are not together, or their times do not increase; names the sequence and unit.
    """
    names = dataset.coords.get("sequence")
    if names is None:
        codes = np.zeros(dataset.n_units, dtype=np.int64)
    else:
        changes = np.concatenate([[False], names[1:] != names[:-1]])
        codes = np.cumsum(changes)
        firsts = [str(name) for name in names[np.flatnonzero(np.concatenate([[True], changes[1:]]))]]
        twice = next((name for name in firsts if firsts.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{dataset.name}: the steps of sequence {twice!r} are not together.")
    return codes
