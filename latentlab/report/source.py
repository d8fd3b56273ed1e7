"""Contents of a run that its page uses: the files, and the model of the config."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from latentlab.compare.align import aligner
from latentlab.compare.clustering import minimum_binder
from latentlab.correspondences.claim import Correspondence
from latentlab.correspondences.registry import find
from latentlab.data.dataset import Dataset
from latentlab.data.memory import by_quantity
from latentlab.errors import ConfigError, LatentLabError
from latentlab.files import sha256
from latentlab.models.base import LatentModel
from latentlab.registry import MODELS, plugins
from latentlab.report.reload import reloaded
from latentlab.report.rows import Row, matched
from latentlab.results.tree import covariance_of_draws, kinds, mean_of_draws
from latentlab.seeds import for_model
from latentlab.store.read import Run

POINT = "point"


@dataclass(frozen=True)
class Source:
    """A run with the quantities that its sections share, each computed once.

    Args:
        run: The run.
        chosen: Kind of units of the sections; the first if None.
        given: The model, if it is not to be built from the config.
    """

    run: Run
    chosen: str | None = None
    given: LatentModel | None = None

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of units that have positions."""
        return kinds(self.tree) if self.model is None else tuple(self.model.kinds)

    @property
    def unit(self) -> str:
        """Kind of units of this source."""
        return self.kinds[0] if self.chosen is None else self.chosen

    def of(self, kind: str) -> "Source":
        """Return the source of the same run for a kind of units, the same one at each call."""
        return self if kind == self.unit else self._others.setdefault(kind, Source(self.run, kind, self.given))

    @cached_property
    def _others(self) -> dict[str, "Source"]:
        return {}

    @property
    def points(self) -> str:
        """Name of the observations; `unit` in a table."""
        return str(self.tree.attrs.get("points", "unit"))

    @cached_property
    def index(self) -> dict[str, str]:
        """Index of the points -> kind of units; empty in a table."""
        return dict(json.loads(str(self.tree.attrs.get("index", "{}"))))

    @cached_property
    def point_names(self) -> list[str]:
        """Names of the points: the names of the units in a table; otherwise the joined names of the units of each point."""
        if not self.index:
            return self.units
        columns = [self.observed[name].values.astype(str).tolist() for name in self.index]
        return [" – ".join(names) for names in zip(*columns, strict=True)]

    @property
    def comparison(self) -> xr.Dataset:
        """Contents of comparison.nc for this kind of units."""
        return self.run.comparison_by_kind[self.unit]

    @property
    def embeddings(self) -> xr.Dataset:
        """Contents of embeddings.nc for this kind of units."""
        return self.run.embeddings_by_kind[self.unit]

    @property
    def scores(self) -> pd.DataFrame:
        """Rows of comparison.csv for this kind of units."""
        table = self.run.scores
        return table[table["units"] == self.unit].reset_index(drop=True)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.run.config

    @property
    def tree(self) -> xr.DataTree:
        """Contents of posterior.nc."""
        return self.run.posterior

    def group(self, name: str) -> xr.Dataset | None:
        """Return a group of posterior.nc; None if there is no such group."""
        return self.tree[name].to_dataset() if name in self.tree.children else None

    @property
    def kind(self) -> str:
        """Kind of inference: `mcmc`, `vi` or `point`."""
        return POINT if self.tree.attrs.get("point_estimate") else str(self.tree.attrs.get("inference", "mcmc"))

    @cached_property
    def unconverged(self) -> str:
        """Remark on verdicts of a fit with failed checks; empty if no check failed."""
        return "the fit did not converge" if (self.run.diagnostics["verdict"] == "fail").any() else ""

    # -- the model

    @cached_property
    def model(self) -> LatentModel | None:
        """The model; None if it is from a plugin that is missing or was changed."""
        if self.given is not None:
            return self.given
        section = dict(self.config["model"])
        name = section.pop("name")
        with contextlib.ExitStack() as stack:
            if name not in MODELS:
                files = self.run.info.get("plugins", {})
                if not files or any(not Path(file).is_file() or sha256(Path(file)) != old for file, old in files.items()):
                    return None
                stack.enter_context(plugins(list(files)))
            stack.enter_context(for_model(int(self.config.get("seed", 0))))
            try:
                return MODELS.load(name)(**section)
            except (LatentLabError, TypeError):
                return None

    @cached_property
    def site(self) -> str:
        """Name of the position site."""
        if self.model is not None:
            return self.model.kinds[self.unit].site
        sites = [str(name) for name, array in self.tree["latents"].data_vars.items() if self.unit in array.dims]
        if not sites:
            raise ConfigError(f"{self.run.path}: posterior.nc contains no positions: no aligned site has the dim {self.unit!r}.")
        return sites[0]

    # -- positions

    @cached_property
    def positions(self) -> xr.DataArray:
        """Aligned positions `(chain, draw, unit, latent)`."""
        z = self.tree["latents"][self.site]
        z = z if z.ndim == 4 else z.expand_dims("latent", axis=-1)
        return z.astype(np.float64, copy=False)

    @cached_property
    def mean(self) -> np.ndarray:
        """Posterior mean of the positions `(unit, latent)`."""
        return mean_of_draws(self.positions)

    @cached_property
    def covariance(self) -> np.ndarray:
        """Posterior covariance of each unit's position `(unit, latent, latent)`."""
        return covariance_of_draws(self.positions, self.mean)

    @cached_property
    def spread(self) -> np.ndarray:
        """Standard deviation of each unit's position, root mean square over dimensions `(unit,)`."""
        return np.sqrt(np.trace(self.covariance, axis1=1, axis2=2) / self.mean.shape[1])

    @cached_property
    def units(self) -> list[str]:
        return [str(unit) for unit in self.positions[self.unit].values]

    # -- positions that are labels

    @cached_property
    def is_discrete(self) -> bool:
        """Whether the positions are labels."""
        if self.model is not None:
            return self.model.is_discrete
        return self.tree["latents"][self.site].dtype.kind in "iub"

    @property
    def position_noun(self) -> str:
        """Name of the positions in texts: `positions` or `labels`."""
        return "labels" if self.is_discrete else "positions"

    @cached_property
    def label_dim(self) -> str:
        """Dim that the labels index, such as `component` or `state`; `label` if it is not known."""
        dims = {str(dim) for array in self.tree["posterior"].data_vars.values() for dim in array.dims}
        return next((dim for dim in ("component", "state") if dim in dims), "label")

    @cached_property
    def label_draws(self) -> np.ndarray:
        """Aligned draws of the labels `(chain, draw, unit)`."""
        return np.asarray(self.tree["latents"][self.site].values).astype(np.int64, copy=False)

    @cached_property
    def n_labels(self) -> int:
        """Number of values of a label."""
        return int(self.tree["posterior"].sizes.get(self.label_dim, self.label_draws.max() + 1))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Share of draws in which a unit has a label `(unit, label)`."""
        flat = self.label_draws.reshape(*self.label_draws.shape[:2], -1)
        return by_quantity(lambda p: np.stack([(p == k).mean(axis=(0, 1)) for k in range(self.n_labels)]), flat).T.copy()

    @cached_property
    def estimate(self) -> np.ndarray:
        """Point estimate `(unit,)`: a partition of least expected Binder loss, its clusters matched with the model's labels."""
        if self.compared and "point_estimate" in self.comparison:
            codes = self.comparison["point_estimate"].values.astype(np.int64)
        else:
            codes = minimum_binder(self.label_draws)
        return matched(codes, self.probabilities)

    @cached_property
    def certainty(self) -> np.ndarray:
        """Probability of each unit's label in the point estimate, `(unit,)`."""
        known = np.hstack([self.probabilities, np.zeros((len(self.units), int(self.estimate.max()) + 1))])
        return np.asarray(known[np.arange(len(self.units)), self.estimate])

    @cached_property
    def sequences(self) -> list[np.ndarray] | None:
        """Indices of the units of each sequence, in order; None if the data are not a series."""
        coords = self.observed.coords
        if "sequence" not in coords and "time" not in coords:
            return None if self.model is None or "leave_one_out" not in self.model.offers else [np.arange(len(self.units))]
        name = coords["sequence"].values if "sequence" in coords else np.zeros(len(self.units))
        return list(np.split(np.arange(len(name)), np.flatnonzero(name[1:] != name[:-1]) + 1))

    # -- data

    @property
    def n_categories(self) -> int | None:
        """Number of categories of which the observed values are codes; None if they are numbers."""
        found = getattr(self.model, "n_categories", None)
        return None if found is None else int(found)

    @cached_property
    def observed(self) -> xr.DataArray:
        """Observed array of the fit, with NaN for missing entries."""
        return next(iter(self.tree["observed_data"].data_vars.values()))

    @cached_property
    def fitted(self) -> Dataset:
        """Fitted data set; without labels and truth if there is a `data_problem`."""
        if self._data is not None:
            return self._data
        x = self.observed
        dims = tuple(map(str, x.dims))
        coords = {str(name): array.values for name, array in x.coords.items() if array.dims in {(dim,) for dim in dims}}
        return Dataset({str(x.name): x.values}, dims={str(x.name): dims}, coords=coords)

    @cached_property
    def is_table(self) -> bool:
        return self.observed.dims == ("unit", "feature")

    @cached_property
    def features(self) -> list[str]:
        return [str(name) for name in self.observed["feature"].values] if "feature" in self.observed.dims else []

    @cached_property
    def raw(self) -> Dataset | None:
        """Fitted data set in raw values, with labels and truth; None if there is a `data_problem`."""
        return None if self._data is None else self._data.raw()

    @cached_property
    def _data(self) -> Dataset | None:
        """Contents of data.nc; for an older run without it, the data set loaded again if its hash is unchanged."""
        if self.run.data is not None:
            return self.run.data
        return reloaded(self.config["dataset"], self.run.info["data"]["sha256"], self.observed, self.run.params)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Known label of each unit as text; None without labels, with a single label, or with as many labels as units."""
        known = None if self.raw is None else self.raw.labels_of(self.unit)
        if known is None:
            return None
        labels = np.array([str(label) for label in known.tolist()])
        return labels if 1 < len(np.unique(labels)) < len(labels) else None

    # -- embeddings

    @property
    def compared(self) -> bool:
        """Whether an embedding of this kind of units was compared with the posterior."""
        return "comparison.nc" in self.run.info["files"] and self.unit in self.run.comparison_by_kind

    @cached_property
    def rows(self) -> list[Row]:
        """Compared arrays, in the order of comparison.nc, except mapped arrays whose map is not available."""
        found = []
        data = self.comparison
        columns = (data[c].values.astype(str).tolist() for c in ("embedding", "name", "seed", "map"))
        for label, name, seed, map_name in zip(*columns, strict=True):
            values = self._values(name, seed)
            claim = self.claim(name)
            if map_name == "mapped":
                if claim is None or claim.map is None:
                    continue
                values = claim.map(values, self.fitted)
            found.append(Row(label, name, seed, map_name, values, self.titles[label]))
        return found

    @cached_property
    def first_rows(self) -> list[Row]:
        """Rows of each embedding's first seed."""
        first: dict[str, str] = {}
        for row in self.rows:
            first.setdefault(row.embedding, row.seed)
        return [row for row in self.rows if row.seed == first[row.embedding]]

    @cached_property
    def judged(self) -> list[str]:
        """Titles of the rows with a verdict."""
        return [title for title, has in zip(self.titles.values(), self._has_verdict, strict=True) if has]

    @cached_property
    def unjudged(self) -> list[str]:
        """Embeddings without a verdict, once for all seeds: embeddings that are not clusterings, if the positions are labels."""
        data = self.comparison
        names = zip(
            data["name"].values.astype(str).tolist(), data["map"].values.astype(str).tolist(), self._has_verdict, strict=True
        )
        return list(
            dict.fromkeys(f"{name}{' (mapped)' if map_name == 'mapped' else ''}" for name, map_name, has in names if not has)
        )

    @property
    def _has_verdict(self) -> np.ndarray:
        return np.asarray((self.comparison["verdict"].values != "").any(axis=0))

    @cached_property
    def judged_rows(self) -> list[Row]:
        """Rows of `first_rows` with a verdict."""
        return [row for row in self.first_rows if row.title in self.judged]

    @cached_property
    def titles(self) -> dict[str, str]:
        """Label in comparison.nc -> title of the compared array on the page, in which seeds are numbered from 1."""
        data = self.comparison
        found: dict[str, str] = {}
        seeds: dict[str, list[str]] = {}
        columns = (data[c].values.astype(str).tolist() for c in ("embedding", "name", "seed", "map"))
        for label, name, seed, map_name in zip(*columns, strict=True):
            known = seeds.setdefault(name, [])
            known += [] if seed in known else [seed]
            run = f", seed {known.index(seed) + 1}" if seed else ""
            found[label] = f"{name}{run}{' (mapped)' if map_name == 'mapped' else ''}"
        return found

    def _values(self, name: str, seed: str) -> np.ndarray:
        array = self.embeddings[name]
        if array.ndim == 3:
            index = [str(s) for s in array[array.dims[0]].values].index(seed)
            array = array[index]
        order = pd.Index([str(u) for u in array[self.unit].values]).get_indexer(pd.Index(self.units))
        return np.asarray(array.values[order], dtype=np.float64)

    def claim(self, embedding: str) -> Correspondence | None:
        """Return the known correspondence of an embedding (given by its label) with the model; None if there is none."""
        attrs = self.embeddings[embedding].attrs
        options = json.loads(str(attrs.get("options", "{}")))
        return find(str(attrs.get("name", embedding)), str(self.config["model"]["name"]), options, self.config["model"])

    def aligned(self, values: np.ndarray) -> np.ndarray:
        """Align positions with the posterior mean `(unit, latent)`, by a similarity transformation.

        The map is affine if there are more columns, or if the symmetry includes linear maps. Positions are unchanged if the model
        has no symmetry.
        """
        alignment = "affine" if values.shape[1] > self.mean.shape[1] or "linear" in self.ignored else "similarity"
        if alignment == "similarity" and self.ignored == "none":
            return np.asarray(aligner("fixed", self.mean)(values))
        return np.asarray(aligner(alignment, self.mean)(values)) + self.mean.mean(axis=0)

    @property
    def ignored(self) -> str:
        """Transformations of the model's symmetry, in words; `none` if it is trivial, and empty without a comparison."""
        words = str(self.comparison.attrs.get("ignores", "")) if self.compared else ""
        return "none" if words == "nothing" else words  # `nothing` in files of earlier versions
