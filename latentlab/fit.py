"""The common runner: a model, a dataset and a method become a `Fit`."""

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.series import boundaries
from latentlab.data.stored import StoredDataset
from latentlab.diagnostics import converged, diagnose, sensitivity
from latentlab.errors import ConfigError, DataError, InferenceError, ModelError, unknown
from latentlab.inference.capture import Plan
from latentlab.inference.density import Density, over_draws, parameter_tensors, tensors
from latentlab.inference.draws import Draws, Method, Problem, finished_draws
from latentlab.inference.encoder import activity, is_amortised, log_weights
from latentlab.inference.invariance import check_symmetry
from latentlab.models.base import NOTHING, LatentModel, check_declaration
from latentlab.modes import chain_modes, restart_modes
from latentlab.posterior import LEFT_OUT, Loo, arrays, build, loo, to_arviz
from latentlab.seeds import Seeds, double, isolated, one_thread
from latentlab.symmetry import consensus
from latentlab.symmetry.group import Aligned, Group
from latentlab.symmetry.groups import Orthogonal, SignedPermutation
from latentlab.symmetry.labels import indicators

logger = logging.getLogger(__name__)

MOST_NUMBERS = 2**24
"""Labels are aligned by as many units as give so many numbers at most (128 MB)."""
AT_ONCE = 256
"""Draws of the positions, given one value of the sites, that are made together."""
N_PREDICTIVE = 100
"""Draws of the prior and posterior predictive that are kept: a whole data set each."""
N_BOUND = 500
"""Samples of the encoder for a bound on the log likelihood of units."""


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted model: everything that was found is in `data`, the rest says what was asked.

    Args:
        model: The model.
        dataset: What it was fitted to.
        method: How.
        seed: Root of the seed tree.
        data: The result in ArviZ's schema.
    """

    model: LatentModel
    dataset: Dataset
    method: Method
    seed: int
    data: xr.DataTree

    def __repr__(self) -> str:
        sizes = self.data["posterior"].sizes
        state = "converged" if self.converged else "NOT converged"
        draws = f"{sizes['chain']} x {sizes['draw']} draws"
        return f"Fit({self.model!r}, {self.dataset!r}, {self.method!r}, seed={self.seed}: {draws}, {state})"

    def to_arviz(self) -> Any:
        """The result as the installed ArviZ line takes it: InferenceData before 1.0, the DataTree from then on."""
        return to_arviz(self.data)

    @property
    def _declared(self) -> dict[str, Any]:
        """What diagnostics need to know of the model."""
        return {"group": self.model.exchanges, "dims": dict(self.model.dims), "position": self.model.position.site}

    @cached_property
    def _table(self) -> pd.DataFrame:
        invariant = self.model.exchanges in self.model.symmetry
        return diagnose(self.data, **self._declared, lp_is_invariant=invariant)

    def diagnostics(self) -> pd.DataFrame:
        """Did inference work: check, quantity, value, threshold, verdict; on what the symmetry leaves identified."""
        return self._table.copy()

    @property
    def converged(self) -> bool:
        """Whether no diagnostic failed; NaN never passes."""
        return converged(self._table)

    def modes(self) -> pd.DataFrame:
        """The modes, modulo the symmetry, that the chains sit in, or that the restarts ended in (`latentlab.modes`)."""
        return (chain_modes if self.method.kind == "mcmc" else restart_modes)(self.data, **self._declared)

    def sensitivity(self) -> pd.DataFrame:
        """Which identified quantities move with the prior, which with the likelihood (`diagnostics.sensitivity`)."""
        return sensitivity(self.data, **self._declared)

    def loo(self) -> Loo:
        """Leave-one-out predictive accuracy, of a variational fit corrected to the posterior (`posterior.loo`).

        Raises:
            ModelError: A point estimate, of the sites or of the model's parameters.
        """
        return loo(self.data)

    def sites(self) -> dict[str, np.ndarray]:
        """Draws of every site `(chain, draw, *site)`, as drawn."""
        return {str(name): array.values for name, array in self.data["posterior"].data_vars.items()}

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The model's parameters, one value each; none where it has no others than sites."""
        return arrays(self.data, "parameters")

    def frozen(self) -> LatentModel:
        """The model with its parameters fixed at the fit's: `fit(this, units, NUTS())` samples their positions exactly."""
        return self.model.frozen(self.parameters, self._classes)

    def activity(self) -> pd.DataFrame:
        """Activity of each dimension of the encoder: dimension, activity, kl (nats a unit), active (`inference.encoder`).

        Raises:
            ModelError: The model has no encoder.
        """
        if not self.model.parameters:
            raise ModelError(f"activity: {self.model.name!r} has no encoder; models that have: vae, linear_vae.")
        return activity(self.model, tensors(self.model, self.dataset), parameter_tensors(self.parameters))

    @property
    def _classes(self) -> np.ndarray | None:
        return classes_of(self.model, self.dataset)

    @cached_property
    def _aligned(self) -> Aligned:
        return align(self.model, self.sites(), point=one_orientation(self.model, self.method))

    def latents(self, dataset: Any = None) -> xr.DataArray:
        """Positions `(chain, draw, unit, latent)` with the symmetry removed; `unit` is the kind of the units that they are of.

        Args:
            dataset: Units that were not in the fit, as a Dataset, a DataFrame, a DataArray or an array of raw values; the
                training transform is applied, columns are matched by name. The fit's own units where None. Or the name of a
                position of the model, `"V"`, which is the first one unless said.

        Raises:
            ModelError: The model cannot give positions to new units, or has no such position.
            DataError: Columns are missing or too many, or entries that the model cannot do without.
        """
        site = self.model.position.site
        if isinstance(dataset, str):
            sites = [position.site for position in self.model.positions]
            if dataset not in sites:
                raise ModelError(unknown(f"position of {self.model.name!r}", dataset, sites))
            site, dataset = dataset, None
        if dataset is None:
            return _with_latent_dim(self.data["latents"].to_dataset()[site])
        if not self.model.integrates_positions():
            raise ModelError(f"{self.model.name!r} has no `latents`, so it cannot place units that were not in the fit.")
        new = self._like_training(dataset)
        seeds = Seeds(self.seed).child("latents", new.digest())
        values = {name: array for name, array in self.sites().items() if name != site}
        with isolated(seeds):
            lead = next(iter(self.sites().values())).shape[:2]
            arrays, equal = tensors_of_new(self.model, new, self._classes), self.method.kind == "point"
            z = draw_positions(self.model, arrays, values, self.parameters, lead, equal=equal)
        z = self.model.act(self._aligned.elements, {site: z})[site]
        dims = ("chain", "draw", *self.model.dims[site])
        return _with_latent_dim(xr.DataArray(z, dims=dims, coords=_lead_coords(z, new), name=site))

    def probabilities(self, dataset: Any = None, *, n_draws: int = 400) -> xr.DataArray:
        """Probabilities of each unit's labels given each draw of the other sites, `(chain, draw, unit, component or state)`.

        Responsibilities of a mixture, smoothed marginals of a hidden Markov model, with the symmetry removed; their mean over
        draws is the share of draws in which a unit has a label, with less noise.

        Args:
            dataset: Units that were not in the fit, as in `latents`; the fit's own where None.
            n_draws: About so many draws, spread evenly over the chains.

        Raises:
            ModelError: The positions are not discrete.
            DataError: New data that the fit cannot take.
        """
        site, dim = self.model.position.site, self.model.exchanges.dim
        if self.model.position.kind != "discrete":
            raise ModelError(f"the positions of {self.model.name!r} are {self.model.position.kind}: they have no labels.")
        new = self.dataset if dataset is None else self._like_training(dataset)
        given = tensors(self.model, new) if dataset is None else tensors_of_new(self.model, new)
        values = thinned({name: array for name, array in self.sites().items() if name != site}, n_draws)
        elements = thinned({"g": self._aligned.elements}, n_draws)["g"]

        def probs(sites: Mapping[str, torch.Tensor]) -> torch.Tensor:
            found: Any = self.model.latents(given, **sites)
            return found.probs

        found = _lifted(probs, values)
        p = self.model.exchanges.act(elements, {"p": found}, {"p": ("unit", dim)})["p"]
        return xr.DataArray(p, dims=("chain", "draw", "unit", dim), coords=_lead_coords(p, new), name=f"p({site})")

    def log_likelihood(self, dataset: Any, *, n_samples: int = N_BOUND) -> xr.DataArray:
        """log p(point | draw) `(chain, draw, point)` of points (in a table: units) that were not in the fit.

        Positions of a table's units are integrated out; the units of ratings or of a graph must be those of the fit. Where the
        model has only a bound on it, this is the bound, of that name and with one draw: there are parameters alone.

        Args:
            dataset: The points, as in `latents`.
            n_samples: Samples of the encoder for each unit, for a bound.
        """
        new = self._like_training(dataset)
        if self.model.has_bound():
            with isolated(Seeds(self.seed).child("bound", new.digest())), torch.no_grad():
                given = tensors_of_new(self.model, new, self._classes)
                array = self.model.bound(given, n_samples, **parameter_tensors(self.parameters)).numpy()[None, None]
        else:
            density = density_of_new(self.model, new, self.parameters, self._classes)
            values = _globals(self.sites(), [s.name for s in density.sites])
            array = _lifted(density.log_likelihood, values, (1, 1))
        name = "bound" if self.model.has_bound() else "log_likelihood"
        return xr.DataArray(array, dims=("chain", "draw", new.points), coords=_point_coords(array, new), name=name)

    def held_out_score(self, dataset: Any, *, n_samples: int = N_BOUND) -> dict[str, float]:
        r"""$\sum_n \log \frac1S \sum_s p(x_n \mid \theta_s)$ of held-out units with its standard error; larger is better.

        The sum is called `elpd`; or `bound` where the model has only a bound, with `n_samples` samples of its encoder.
        Of a series, the sequences are what is scored: `n_units` is their number. Of ratings and graphs it is the points, which
        `n_points` counts.
        """
        pointwise = self.log_likelihood(dataset, n_samples=n_samples).values
        flat = pointwise.reshape(-1, pointwise.shape[-1])
        if self.model.is_series():
            first = np.unique(boundaries(self._like_training(dataset)), return_index=True)[1]
            flat = np.add.reduceat(flat, first, axis=1)
        each = np.logaddexp.reduce(flat, axis=0) - np.log(len(flat))
        se = float(np.sqrt(len(each)) * each.std(ddof=1)) if len(each) > 1 else float("nan")
        name = "bound" if self.model.has_bound() else "elpd"
        return {name: float(each.sum()), "se": se, "n_points" if self.dataset.index else "n_units": float(len(each))}

    def predict(self, *, n_draws: int = 400, **units: Sequence[Any]) -> xr.DataArray:
        """New observations of points, given by the names of their units: posterior draws `(chain, draw, point)` in raw values.

        `fit.predict(user=["ann", "ann"], item=["alien", "brazil"])` gives ratings, whether or not these points were observed.

        Args:
            n_draws: About so many draws, spread evenly over the chains.
            units: Index -> name of each point's unit; as many for each index.

        Raises:
            DataError: An index is missing or unknown, lengths differ, or a unit was not in the fit.
        """
        dataset, given = self.dataset, {name: np.atleast_1d(np.asarray(names)) for name, names in units.items()}
        if not dataset.index:
            raise DataError(
                f"{dataset.name}: predict is for points that refer to units by an index, as ratings do; this is a table."
            )
        if set(given) != set(dataset.index):
            raise DataError(f"predict: give a name for each of {', '.join(dataset.index)}; got {', '.join(given) or 'none'}.")
        sizes = {len(names) for names in given.values()}
        if len(sizes) > 1:
            raise DataError(
                f"predict: as many names for each index; got {', '.join(f'{n}: {len(v)}' for n, v in given.items())}."
            )
        index = {}
        for name, names in given.items():
            kind = dataset.index[name].kind
            places = pd.Index(dataset.units[kind].astype(str)).get_indexer(names.astype(str))
            if (places < 0).any():
                strange = str(names[places < 0][0])
                raise DataError(f"predict: {name} {strange!r} was not in the fit; see `fit.dataset.units[{kind!r}]`.")
            index[name] = places
        arrays = {**tensors(self.model, dataset), **{name: torch.tensor(places) for name, places in index.items()}}
        arrays[dataset.observed] = torch.zeros(sizes.pop(), dtype=torch.float64)
        density = Density(self.model, arrays, dataset.array_dims, parameter_tensors(self.parameters))
        values = thinned(_globals(self.sites(), [site.name for site in density.sites]), n_draws)
        with isolated(Seeds(self.seed).child("predict")):
            found = _lifted(density.predict, values)[dataset.observed]
        if dataset.transform is not None:
            found = dataset.transform.inverse(found)
        coords = {name: (dataset.points, names) for name, names in given.items()}
        return xr.DataArray(found, dims=("chain", "draw", dataset.points), coords=coords, name=dataset.observed)

    def imputations(self, *, n_draws: int = 400) -> xr.DataArray:
        """Missing entries of the data as the model fills them in: posterior draws `(chain, draw, entry)`, in raw units.

        The coordinates `unit` and `feature` along `entry` say which entries; draws are spread evenly over the chains.

        Args:
            n_draws: About so many draws, over all chains.

        Raises:
            DataError: No entry is missing.
            ModelError: The model does not say what missing entries were.
        """
        dataset, where = self.dataset, np.argwhere(np.isnan(self.dataset.x))
        if not len(where):
            raise DataError(f"{dataset.name}: no entry is missing, so that nothing can be filled in.")
        seeds = Seeds(self.seed).child("imputations")
        x = impute(self.model, dataset, thinned(self.sites(), n_draws), seeds, where, self.parameters)
        if dataset.transform is not None:
            loc, scale = (np.broadcast_to(a, dataset.x.shape) for a in (dataset.transform.loc, dataset.transform.scale))
            x = x * scale[tuple(where.T)] + loc[tuple(where.T)]
        coords = {"unit": ("entry", dataset.units[where[:, 0]]), "feature": ("entry", dataset.features[where[:, 1]])}
        return xr.DataArray(x, dims=("chain", "draw", "entry"), coords=coords, name=dataset.observed)

    def _like_training(self, dataset: Any) -> Dataset:
        return self.dataset.conform(dataset)


def fit(
    model: LatentModel,
    dataset: Dataset | StoredDataset,
    method: Method,
    *,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    log: Callable[[str], object] | None = None,
) -> Fit:
    """Fits a model to a dataset: the same call for every method.

    Args:
        model: The model.
        dataset: The data; missing entries are NaN or masked. Of data that stay on disk, which SVI takes with a `batch_size`, the
            fit's `dataset`, positions and log likelihood are those of `dataset.sample`.
        method: How: `NUTS`, `ChEES`, `SVI`, `MAP`, `Exact`, with their settings.
        seed: The same seed gives the same arrays.
        progress: Bars on a terminal.
        checkpoint: Folder for what is finished, and for chains and optimisers that are interrupted: the same call goes on from
            there. Draws are written before results are assembled, so that a failure after the fit costs no second one.
        log: Called with a line now and then that says how the fit stands.

    Returns:
        The fit. Torch, Pyro, the random states and the working folder are left as they were.

    Raises:
        ConfigError: Something else than a model, a dataset and a method was given.
        ModelError: Model, data and method do not go together; names the site or setting.
        DataError: Data that the model cannot take.
        InferenceError: Something became non-finite; names the site and step.
    """
    seeds = Seeds(seed)
    dataset = dataset.complete() if isinstance(dataset, Dataset) else dataset
    problem = prepared(model, dataset, method, seed=seed, progress=progress, checkpoint=checkpoint, log=log)
    with problem.resources, one_thread():
        draws = finished_draws(problem, method)
        with isolated(seeds.child("posterior")):
            data = _assemble(problem, dataset.sample, method, draws, seed)
    return Fit(model, dataset.sample, method, seed, data)


def prepared(
    model: LatentModel,
    dataset: Dataset | StoredDataset,
    method: Method,
    *,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    log: Callable[[str], object] | None = None,
) -> Problem:
    """What a method is given, once everything that can be refused before it runs was; arguments and errors as in `fit`."""
    for name, value, kinds in (("model", model, (LatentModel,)), ("dataset", dataset, (Dataset, StoredDataset))):
        if not isinstance(value, kinds):
            given = repr(value) if isinstance(value, str) else type(value).__name__
            if isinstance(value, type):
                given = f"the class {value.__name__}: call it, with its arguments"
            how = ', such as `Dataset({"x": x}, dims={"x": ("unit", "feature")})`' if name == "dataset" else ""
            raise ConfigError(f"fit: `{name}` must be a `{kinds[0].__name__}`{how}; got {given}.")
    if isinstance(method, type | str) or not hasattr(method, "run"):
        raise ConfigError(f"fit: `method` must be a method with its settings, such as `NUTS()`; got {method!r:.60}.")
    check_declaration(model)
    if method.name not in model.methods:
        raise ModelError(f"method {method.name!r} does not go with model {model.name!r}; methods: {', '.join(model.methods)}.")
    stored = dataset if isinstance(dataset, StoredDataset) else None
    dataset = dataset.complete() if isinstance(dataset, Dataset) else dataset
    check_kinds(model, dataset.sample)
    arrays = _checked(model, dataset)
    if getattr(method, "maximizes_likelihood", False):
        model.check_maximum(dataset.sample)
    for caution in model.cautions(dataset.sample):
        logger.warning("%s: %s", dataset.name, caution.quantity)
    plan = method.plan() if hasattr(method, "plan") else Plan()
    try:
        density = Density(model, arrays, dataset.sample.array_dims, plan=plan, n_points=dataset.n_units if stored else None)
    except ModelError as error:
        if dataset.transform is None or "outside of the support" not in str(error):
            raise
        raise ModelError(f"{error} The data are standardised: take raw values by `dataset.standardize=false`.") from error
    if stored is not None:
        _check_stored(stored, density, method)
    folder = Path(checkpoint) if checkpoint else None
    identity = f"{model!r} {dataset.digest()} {method!r} {seed}" if folder else ""
    problem = Problem(model, arrays, density, Seeds(seed).child(method.name), progress, folder, identity, stored, log=log)
    if hasattr(method, "check"):
        method.check(problem)
    outline(problem, dataset.sample)
    return problem


def check_kinds(model: LatentModel, dataset: Dataset) -> None:
    """Refuses data without the kinds of units that the model places.

    Raises:
        DataError: Names the kinds of both.
    """
    lacks = next((kind for kind in model.kinds if kind and kind not in dataset.kinds), None)
    if lacks is not None and (lacks != "unit" or dataset.index):
        raise DataError(
            f"{dataset.name}: the model {model.name!r} places units of the kind {lacks!r}; the data have units of the kind "
            f"{', '.join(map(repr, dataset.kinds))}."
        )


def outline(problem: Problem, dataset: Dataset) -> xr.DataTree:
    """The result's names, dims and coordinates with a single draw of zeros, to refuse before the fit what cannot be stored.

    Raises:
        ModelError: A coordinate or a name that a result cannot have; names it.
    """
    density = problem.density
    sites = density.constrain(torch.zeros(density.size, dtype=torch.float64))
    return build(
        {"posterior": {name: value[None, None].numpy() for name, value in sites.items()}, **_given(density, dataset)},
        dims={**density.observed, **{name: tuple(own) for name, own in problem.model.dims.items()}, **dataset.dims},
        coords=_coords(dataset),
        along={dataset.points: dataset.point_names()},
    )


def _coords(dataset: Dataset) -> dict[str, np.ndarray]:
    """The names along the dims of a result."""
    return {**dataset.coords, **(dataset.kinds if dataset.index else {})}


def _given(density: Density, dataset: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """The data as groups of a result, with what the program observes under a name that no array has."""
    return {
        "observed_data": {
            dataset.observed: dataset.x,
            **{name: value for name, value in density.observations.items() if name not in dataset.arrays},
        },
        "constant_data": {name: a for name, a in dataset.arrays.items() if name != dataset.observed},
    }


def _checked(model: LatentModel, dataset: Dataset | StoredDataset) -> dict[str, Any]:
    """The data (on disk: the sample) as the program takes them, once nothing of the whole is such that the model refuses it."""
    if isinstance(dataset, Dataset):
        model.check(dataset)
        return tensors(model, dataset)
    model.check(dataset.witnesses)
    tensors(model, dataset.witnesses)
    arrays = tensors(model, dataset.sample)
    if dataset.n_missing and arrays["mask"] is None:
        arrays["mask"] = torch.ones(dataset.sample.x.shape, dtype=torch.bool)
    return arrays


def _check_stored(dataset: StoredDataset, density: Density, method: Method) -> None:
    """Refuses what needs all units at once of data that stay on disk."""
    if getattr(method, "batch_size", None) is None:
        raise ConfigError(
            f"{dataset.name} stays on disk: it is fitted by `SVI` with a `batch_size`; got {method!r}. Anything else needs it in "
            "memory (`in_memory: true`), or some of its units (`subset`)."
        )
    if getattr(method, "held_out", None):
        raise ConfigError(f"{dataset.name} stays on disk: keep held-out units in a file of their own, not by `held_out`.")
    if density.point_sites and not is_amortised(density):
        raise ModelError(
            f"{dataset.name} stays on disk, and {density.model.name!r} has the site {density.point_sites[0]!r} of each unit "
            "beside those of all units: take a model that integrates it out, or one whose sites all belong to units."
        )


def classes_of(model: LatentModel, dataset: Dataset) -> np.ndarray | None:
    """The labels that the columns of `labels` stand for in a fit to this dataset; None where the model takes none."""
    if not model.takes("labels") or dataset.labels is None:
        return None
    return np.unique(dataset.labels) if model.classes is None else model.classes


def one_orientation(model: LatentModel, method: Method) -> bool:
    """Whether all draws lie in the same coordinates: at a point estimate of the sites, or of the parameters."""
    return method.kind == "point" or bool(model.parameters)


def align(model: LatentModel, values: Mapping[str, np.ndarray], *, point: bool = False) -> Aligned:
    """Draws with the model's symmetry removed, by the position site; labels by which units have them.

    At a point estimate all draws have one orientation, and are turned together: else the constant sites would be turned to and
    fro by the noise in the positions.
    """
    group, site = model.exchanges, model.position.site
    dims = {name: tuple(model.dims[name]) for name in values}
    on, on_dims = np.asarray(values[site]), dims[site]
    others = [position.site for position in model.positions[1:] if dims[position.site][1:] == on_dims[1:] == (group.dim,)]
    on = np.concatenate([on, *(values[other] for other in others)], axis=2) if others else on
    if model.position.kind == "discrete" and not group.is_trivial():
        few = max(1, MOST_NUMBERS // (on[..., 0].size * model.n_labels()))
        some = np.unique(np.linspace(0, on.shape[-1] - 1, min(few, on.shape[-1])).astype(int))
        on, on_dims = indicators(on[..., some], model.n_labels()), (*on_dims, group.dim)
    if point:
        on = on.mean(axis=(0, 1), keepdims=True)
    found = group.align({site: on}, {site: on_dims}, on=site)
    elements = np.broadcast_to(found.elements, (*values[site].shape[:2], *found.elements.shape[2:]))
    return _signed(group, Aligned(model.act(elements, values), elements, found.reference), values, dims)


def _signed(group: Group, aligned: Aligned, values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]]) -> Aligned:
    """With each axis's largest mean loading positive, where the group may mirror axes and there are loadings."""
    rows = (name for name, own in dims.items() if len(own) == 2 and own[1] == group.dim and own[0] not in group.units)
    loadings = next(rows, None)
    if loadings is None or SignedPermutation(group.dim) not in group or not isinstance(group, Orthogonal | SignedPermutation):
        return aligned
    mean = aligned.values[loadings].mean(axis=(0, 1))
    mirror = np.diag(consensus.signs(mean))
    elements = group.compose(aligned.elements, mirror)
    return Aligned(group.act(elements, values, dims), elements, aligned.reference @ mirror)


def tensors_of_new(model: LatentModel, dataset: Dataset, classes: np.ndarray | None = None) -> dict[str, Any]:
    """The arrays of units that were not in the fit, as `tensors` makes them.

    Raises:
        DataError: Values that the model cannot take; names column, unit and value.
    """
    model.check_new(dataset)
    return tensors(model, dataset, classes)


def density_of_new(
    model: LatentModel, dataset: Dataset, parameters: Mapping[str, np.ndarray] = NOTHING, classes: np.ndarray | None = None
) -> Density:
    """The density of units that were not in the fit, positions integrated out.

    Raises:
        DataError: Values that the model cannot take; names column, unit and value.
        ModelError: The model has a position for each unit that it does not integrate out.
    """
    given = tensors_of_new(model, dataset, classes)
    density = Density(model.marginal(), given, dataset.array_dims, parameter_tensors(parameters))
    if density.point_sites and not model.has_bound():
        raise ModelError(
            f"held-out units: {model.name!r} has a parameter for each unit ({density.point_sites[0]!r}): none for new units."
        )
    return density


def draw_positions(
    model: LatentModel,
    arrays: Any,
    values: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray] = NOTHING,
    lead: tuple[int, ...] = (1, 1),
    *,
    equal: bool = False,
) -> np.ndarray:
    """A draw of all positions from their conditional for each draw of the other sites, `(chain, draw, unit, ...)`.

    Without other sites, or where their draws are all `equal`, `lead` says how many chains and draws.
    """
    fixed = parameter_tensors(parameters)
    if equal or not values:
        fixed |= parameter_tensors({name: array[0, 0] for name, array in values.items()})
        n_chains, n_draws = lead
        with torch.no_grad():
            conditional = model.latents(arrays, **fixed)
            blocks = [min(AT_ONCE, n_draws - begin) for begin in range(0, n_draws, AT_ONCE)]
            return np.concatenate([conditional.sample(torch.Size((n_chains, n))).numpy() for n in blocks], axis=1)

    def one(sites: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.latents(arrays, **fixed, **sites).sample()

    return _lifted(one, values)


def impute(
    model: LatentModel,
    dataset: Dataset,
    values: Mapping[str, np.ndarray],
    seeds: Seeds,
    where: np.ndarray,
    parameters: Mapping[str, np.ndarray] = NOTHING,
) -> np.ndarray:
    """A draw of missing entries for each draw of all sites, in the scale of the fit: `(chain, draw, entry)`.

    Args:
        model: A model that says what missing entries were.
        dataset: The data that were fitted.
        values: Draws of all sites, positions included, `(chain, draw, *site)`.
        seeds: For the draws.
        where: Indices of the entries in the observed array, `(entry, axis)`.
        parameters: The model's.

    Raises:
        ModelError: The model does not say it.
    """
    if not model.imputes():
        raise ModelError(f"{model.name!r} does not say what missing entries were: it has no `imputation`.")
    given, index = tensors(model, dataset), tuple(torch.from_numpy(where.T))
    fixed = parameter_tensors(parameters)

    def one(sites: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model.imputation(given, **fixed, **sites).sample()[index]

    with isolated(seeds):
        return _lifted(one, values)


def thinned(values: Mapping[str, np.ndarray], n_draws: int) -> dict[str, np.ndarray]:
    """About `n_draws` draws, spread evenly over the chains; all where there are no more."""
    n_chains, each = next(iter(values.values())).shape[:2]
    keep = np.unique(np.linspace(0, each - 1, max(1, min(each, n_draws // n_chains))).astype(int))
    return {name: array[:, keep] for name, array in values.items()}


def _assemble(problem: Problem, dataset: Dataset, method: Method, draws: Draws, seed: int) -> xr.DataTree:
    model, density = problem.model, problem.density.at(parameter_tensors(draws.parameters))
    site, point = model.position.site, method.kind == "point"
    values = dict(draws.values)
    if density.deterministic:
        names = [s.name for s in density.sites]
        values.update(_lifted(density.deterministics, _globals(values, names), equal=point))
    if site not in values or (point and model.integrates_positions()):
        given = {name: array for name, array in values.items() if name != site}
        values[site] = draw_positions(model, problem.arrays, given, draws.parameters, (1, method.n_draws), equal=point)
    for kind, found in (("site", values), ("parameter", draws.parameters)):
        for name, array in found.items():
            if not np.isfinite(array).all():
                raise InferenceError(
                    f"{kind} {name!r}: {int((~np.isfinite(array)).sum())} of {array.size} values are not finite."
                )
    encodes = bool(model.parameters) and model.integrates_positions() and is_amortised(density)
    marginal = model.marginal()
    likelihood = density if marginal is model else Density(marginal, problem.arrays, density.dims, density.parameters)
    aligned = align(model, values, point=one_orientation(model, method))
    acted = [n for n in values if n == site or model.exchanges.dim in model.dims[n]]
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": values,
        "latents": {name: aligned.values[name] for name in acted},
        "log_likelihood": {} if model.has_bound() else _pointwise(likelihood, values, equal=point),
        "log_weights": {"log_weight": log_weights(density, values[site])} if encodes and method.kind == "vi" else {},
        "parameters": dict(draws.parameters),
        "leave_one_out": _left_out(model, problem.arrays, values, equal=point),
        "log_prior": _lifted(density.log_prior, _globals(values, [s.name for s in density.sites]), equal=point),
        "sample_stats": dict(draws.stats),
        **_predictives(density, values),
        **_given(density, dataset),
        "optimization": dict(draws.optimization),
        "restarts": dict(draws.restarts),
    }
    attrs = {
        "model": model.name,
        "method": method.name,
        "inference": method.kind,
        "seed": seed,
        "dataset": dataset.name,
        "point_estimate": int(point),
        "hyperparameters": ", ".join(model.hyperparameters()),
        "cautions": json.dumps(model.cautions(dataset)),
        "deterministic": ", ".join(density.deterministic),
        "conditional_log_likelihood": int(bool(likelihood.point_sites)),
        **draws.attrs,
    }
    attrs |= check_symmetry(model, density, values, draws.parameters, problem.seeds.child("symmetry"))
    if dataset.index:
        index = json.dumps({name: one.kind for name, one in dataset.index.items()})
        attrs |= {"points": dataset.points, "units": ", ".join(dataset.kinds), "index": index}
    if problem.stored is not None:
        attrs["n_units_fitted"] = density.n_points
    if encodes:
        attrs["n_active"] = int(activity(model, problem.arrays, density.parameters)["active"].sum())
    left_out = next((array.shape[-1] for array in groups["leave_one_out"].values()), 0)
    several = {} if left_out in (0, dataset.n_points) else {"left_out": _sequence_names(dataset)}
    return build(
        {name: group for name, group in groups.items() if group},
        dims={
            **density.observed,
            **{name: tuple(own) for name, own in {**model.dims, **model.parameters}.items()},
            **dataset.dims,
            **dict.fromkeys(("log_likelihood", "log_weight"), (dataset.points,)),
            LEFT_OUT: ("left_out",) if several else (dataset.points,),
        },
        coords={**_coords(dataset), **several},
        along={dataset.points: dataset.point_names()},
        attrs=attrs,
    )


def _pointwise(likelihood: Density, values: Mapping[str, np.ndarray], *, equal: bool) -> dict[str, np.ndarray]:
    """log p(unit | draw) `(chain, draw, unit)`, by the program with its positions integrated out."""
    own, lead = _globals(values, [s.name for s in likelihood.sites]), next(iter(values.values())).shape[:2]
    return {"log_likelihood": _lifted(likelihood.log_likelihood, own, lead, equal=equal)}


def _left_out(model: LatentModel, arrays: Any, values: Mapping[str, np.ndarray], *, equal: bool) -> dict[str, np.ndarray]:
    """log p(unit | all others, draw), or of each sequence, where units depend on each other given the sites."""
    if not model.is_series():
        return {}
    given = {name: array for name, array in values.items() if name != model.position.site}
    return {LEFT_OUT: _lifted(lambda sites: model.leave_one_out(arrays, **sites), given, equal=equal)}


def _sequence_names(dataset: Dataset) -> np.ndarray:
    first = np.unique(boundaries(dataset), return_index=True)[1]
    return np.asarray(dataset.coords["sequence"])[first]


def _predictives(density: Density, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Draws of the prior predictive, and of the posterior predictive for the same units: given their positions as drawn.

    Positions that the program integrates out are given to `LatentModel.replicated`; a model without it draws them anew.
    """
    model, names = density.model, [s.name for s in density.sites]
    keeps = model.position.site not in names and model.position.site in values and model.replicates()
    some = thinned(values if keeps else _globals(values, names), N_PREDICTIVE)
    lead = next(iter(some.values())).shape[:2]

    def replicated(sites: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with double():
            return dict.fromkeys(density.observed, model.replicated(density.arrays, **density.parameters, **sites))

    try:
        posterior_draws = _lifted(replicated if keeps else density.predict, some)
        prior_rows = [density.predict(density.prior()) for _ in range(lead[0] * lead[1])]
    except NotImplementedError as error:
        warnings.warn(f"no predictive draws: {error}", stacklevel=2)
        return {}
    prior = {
        n: np.stack([row[n].numpy() for row in prior_rows]).reshape(lead + tuple(prior_rows[0][n].shape)) for n in prior_rows[0]
    }
    return {"posterior_predictive": posterior_draws, "prior_predictive": prior}


def _globals(values: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    return {name: values[name] for name in names}


def _lifted(function: Any, values: Mapping[str, np.ndarray], without: tuple[int, ...] = (1, 1), *, equal: bool = False) -> Any:
    """A function of one draw over `(chain, draw)`; the same for each of `without` where it is of nothing that is drawn.

    Where all draws are `equal`, as at a point estimate, it is found for one of them.
    """
    if not values:
        array = function({}).numpy()
        return np.broadcast_to(array, (*without, *array.shape)).copy()
    lead = next(iter(values.values())).shape[:2]
    flat = {name: array.reshape(-1, *array.shape[2:])[: 1 if equal else None] for name, array in values.items()}
    found = over_draws(function, flat)

    def spread(array: np.ndarray) -> np.ndarray:
        own = array.shape[1:]
        return np.broadcast_to(array[0], (*lead, *own)).copy() if equal else array.reshape(*lead, *own)

    return {name: spread(array) for name, array in found.items()} if isinstance(found, dict) else spread(found)


def _lead_coords(array: np.ndarray, dataset: Dataset) -> dict[str, np.ndarray]:
    """Coordinates of an array `(chain, draw, unit, ...)`."""
    return {"chain": np.arange(array.shape[0]), "draw": np.arange(array.shape[1]), "unit": dataset.units}


def _point_coords(array: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    """Coordinates of an array `(chain, draw, point)`: of a table's units their names, of other points those of their units."""
    if not dataset.index:
        return _lead_coords(array, dataset)
    lead = {"chain": np.arange(array.shape[0]), "draw": np.arange(array.shape[1])}
    return lead | {name: (dataset.points, names) for name, names in dataset.point_names().items()}


def _with_latent_dim(z: xr.DataArray) -> xr.DataArray:
    return z if "latent" in z.dims else z.expand_dims("latent", axis=-1)
