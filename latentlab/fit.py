"""Fits of a model to a dataset by an inference method."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.memory import thinned
from latentlab.data.relation import is_graph
from latentlab.data.series import boundaries
from latentlab.data.stored import StoredDataset
from latentlab.errors import DataError, ModelError, unknown
from latentlab.inference.arrays import parameter_tensors, tensors
from latentlab.inference.density import Density
from latentlab.inference.draws import Method, Monitor, finished_draws
from latentlab.inference.encoder import activity
from latentlab.models.base import LatentModel
from latentlab.notebook import Reported
from latentlab.results.arviz import to_arviz
from latentlab.results.assemble import align, assemble, draw_positions, one_orientation, per_draw, select, thinned_sites
from latentlab.results.diagnostics import converged, diagnose, sensitivity
from latentlab.results.loo import Loo, loo
from latentlab.results.modes import chain_modes, restart_modes
from latentlab.results.new_points import classes_of, impute, log_likelihood_of_new, summed, tensors_of_fit, tensors_of_new
from latentlab.results.parts import compute_parts, shared_folder
from latentlab.results.prepare import prepared
from latentlab.results.tree import arrays, parameters_of, point_coords, unit_coords
from latentlab.seeds import Seeds, isolated, one_thread
from latentlab.settings import Count, checked
from latentlab.symmetry.group import Aligned

N_BOUND = 500
"""Number of samples from the encoder for a bound on the log likelihood of units."""


@dataclass(frozen=True, repr=False)
class Fit(Reported):
    """A fitted model: the result is `data`; the other attributes are the arguments of the fit.

    Args:
        model: The model.
        dataset: The fitted data.
        method: The inference method.
        seed: Root of the seed tree.
        data: The result in ArviZ's schema.
        origin: Versions, hardware, commit and time of the run that the fit was read from; empty for a new fit.
    """

    model: LatentModel
    dataset: Dataset
    method: Method
    seed: int
    data: xr.DataTree
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        sizes = self.data["posterior"].sizes
        state = "converged" if self.converged else "NOT converged"
        draws = f"{sizes['chain']} x {sizes['draw']} draws"
        return f"Fit({self.model!r}, {self.dataset!r}, {self.method!r}, seed={self.seed}: {draws}, {state})"

    def to_arviz(self) -> Any:
        """Result in the type of the installed ArviZ: InferenceData before version 1.0, a DataTree from 1.0 on."""
        return to_arviz(self.data)

    @property
    def _declared(self) -> dict[str, Any]:
        """Properties of the model that the diagnostics use."""
        return {"group": self.model.exchanges, "dims": dict(self.model.dims), "position": self.model.position.site}

    @cached_property
    def _table(self) -> pd.DataFrame:
        invariant = self.model.exchanges in self.model.symmetry
        return diagnose(self.data, **self._declared, lp_is_invariant=invariant)

    def diagnostics(self) -> pd.DataFrame:
        """Table of diagnostics on the identified quantities: check, quantity, value, threshold, verdict."""
        return self._table.copy()

    @property
    def converged(self) -> bool:
        """Whether no diagnostic failed; a diagnostic without a number counts as failed."""
        return converged(self._table)

    def modes(self) -> pd.DataFrame:
        """Modes of the chains, or of the restarts, modulo the symmetry (`latentlab.results.modes`)."""
        return (chain_modes if self.method.kind == "mcmc" else restart_modes)(self.data, **self._declared)

    def sensitivity(self) -> pd.DataFrame:
        """Sensitivity of identified quantities to the prior and to the likelihood (`results.diagnostics.sensitivity`)."""
        return sensitivity(self.data, **self._declared)

    def loo(self) -> Loo:
        """Leave-one-out predictive accuracy; draws of a variational fit are reweighted to the posterior (`results.loo`).

        Raises:
            ModelError: Sites or parameters are point estimates.
        """
        return loo(self.data)

    def sites(self) -> dict[str, np.ndarray]:
        """Draws of every site `(chain, draw, *site)`, without alignment."""
        return {str(name): array.values for name, array in self.data["posterior"].data_vars.items()}

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Point estimates of the parameters of the model and of modules in its guide, by name; empty if it has only sites."""
        return parameters_of(self.data)

    def frozen(self) -> LatentModel:
        """Model with parameters fixed at their estimates: `fit(this, units, NUTS())` samples the exact posterior of positions."""
        return self.model.frozen(self.parameters, self._classes)

    def activity(self) -> pd.DataFrame:
        """Activity of each dimension of the encoder: dimension, activity, kl (nats per unit), active (`inference.encoder`).

        Raises:
            ModelError: The model has no encoder.
        """
        if "n_active" not in self.data.attrs:
            raise ModelError(f"activity: {self.model.name!r} has no encoder: parameters of a guide, with `latents`.")
        return activity(self.model, tensors_of_fit(self.model, self.dataset, self.data), parameter_tensors(self.parameters))

    @property
    def _classes(self) -> np.ndarray | None:
        return classes_of(self.model, self.dataset)

    @cached_property
    def _aligned(self) -> Aligned:
        return align(self.model, self.sites(), point=one_orientation(self.method, arrays(self.data, "parameters")))

    def latents(self, dataset: Any = None) -> xr.DataArray:
        """Aligned positions `(chain, draw, unit, latent)`; the dim `unit` is named after the kind of units.

        Args:
            dataset: New units, as a Dataset, a DataFrame, a DataArray or an array of raw values. The training transform is
                applied, and columns are matched by name. If None, the first positions of the fit. If the name of a position
                site, such as `"V"`, these positions of the fit.

        Raises:
            ModelError: The model does not give positions of new units, or has no such position.
            DataError: Columns are missing or too many, or entries that the model requires are missing.
        """
        site = self.model.position.site
        if isinstance(dataset, str):
            sites = [position.site for position in self.model.positions]
            if dataset not in sites:
                raise ModelError(unknown(f"position of {self.model.name!r}", dataset, sites))
            site, dataset = dataset, None
        if dataset is None:
            return _with_latent_dim(self.data["latents"].to_dataset()[site])
        if "latents" not in self.model.offers:
            raise ModelError(f"{self.model.name!r} has no `latents`, so positions of new units are not available.")
        new = self._like_training(dataset)
        seeds = Seeds(self.seed).child("latents", new.digest())
        values = {name: array for name, array in self.sites().items() if name != site}
        with isolated(seeds):
            shape = next(iter(self.sites().values())).shape[:2]
            arrays, equal = tensors_of_new(self.model, new, self._classes), self.method.kind == "point"
            z = draw_positions(self.model, arrays, values, self.parameters, shape, equal=equal)
        z = self.model.act(self._aligned.elements, {site: z})[site]
        dims = ("chain", "draw", *self.model.dims[site])
        return _with_latent_dim(xr.DataArray(z, dims=dims, coords=unit_coords(z, new), name=site))

    def probabilities(self, dataset: Any = None, *, n_draws: int = 400) -> xr.DataArray:
        """Probabilities of each unit's labels given each draw of the other sites, `(chain, draw, unit, component or state)`.

        They are responsibilities of a mixture, or smoothed marginals of a hidden Markov model, aligned modulo the symmetry. Their
        mean over draws estimates the posterior probability of a label with a smaller Monte Carlo error than the sampled labels.

        Args:
            dataset: New units, as in `latents`; the units of the fit if None.
            n_draws: Approximate number of draws, spread evenly over the chains.

        Raises:
            ModelError: The positions are not discrete.
            DataError: The new data do not match the training data.
            ConfigError: `n_draws` is not at least 1.
        """
        checked("probabilities", {"n_draws": Count}, {"n_draws": n_draws})
        site, dim = self.model.position.site, self.model.exchanges.dim
        if not self.model.is_discrete:
            raise ModelError(
                f"probabilities: the positions of {self.model.name!r} must be discrete; got {self.model.position.kind} positions."
            )
        new = self.dataset if dataset is None else self._like_training(dataset)
        arrays = tensors(self.model, new) if dataset is None else tensors_of_new(self.model, new)
        values = thinned_sites({name: array for name, array in self.sites().items() if name != site}, n_draws)
        elements = thinned(self._aligned.elements, n_draws)

        fixed = parameter_tensors(self.parameters)
        bound = self.model.with_parameters(fixed)

        def probs(sites: Mapping[str, torch.Tensor]) -> torch.Tensor:
            conditional: Any = bound.latents(arrays, **fixed, **sites)
            return conditional.probs

        found = per_draw(probs, values)
        p = self.model.exchanges.act(elements, {"p": found}, {"p": ("unit", dim)})["p"]
        return xr.DataArray(p, dims=("chain", "draw", "unit", dim), coords=unit_coords(p, new), name=f"p({site})")

    def log_likelihood(self, dataset: Any, *, n_samples: int = N_BOUND) -> xr.DataArray:
        """log p(point | draw) `(chain, draw, point)` of new points (units of a table).

        Positions of a table's units are marginalised; points of ratings or of a graph must refer to units of the fit. A model
        with only a lower bound, or an encoder, returns the array `bound` with one draw, since parameters have no posterior draws.

        Args:
            dataset: The points, as in `latents`.
            n_samples: Samples from the encoder for each unit, for the bound.
        """
        new = self._like_training(dataset)
        with isolated(Seeds(self.seed).child("bound", new.digest())):
            array, name = log_likelihood_of_new(self.model, new, self.sites(), self.parameters, self._classes, n_samples)
        return xr.DataArray(array, dims=("chain", "draw", new.points), coords=point_coords(array, new), name=name)

    def held_out_score(self, dataset: Any, *, n_samples: int = N_BOUND) -> dict[str, float]:
        r"""Held-out log predictive density $\sum_n \log \frac1S \sum_s p(x_n \mid \theta_s)$ and its standard error.

        Larger is better. The key is `elpd`, or `bound` if the model has only a bound, with `n_samples` samples from its encoder.
        Units are those of a table, or the sequences of a series; `n_units` is their number. For ratings and graphs the points are
        scored, and `n_points` is their number. The standard error assumes independent terms; points that share units are not.
        """
        terms = self.held_out_terms(dataset, n_samples=n_samples)
        return summed(terms, "n_points" if self.dataset.index else "n_units")

    def held_out_terms(self, dataset: Any, *, n_samples: int = N_BOUND) -> pd.DataFrame:
        """Terms of `held_out_score`: names of the unit, sequence or point, and its `elpd` or `bound`."""
        pointwise = self.log_likelihood(dataset, n_samples=n_samples)
        flat = pointwise.values.reshape(-1, pointwise.shape[-1])
        names = {str(name): one.values for name, one in pointwise.coords.items() if one.dims == pointwise.dims[-1:]}
        if "leave_one_out" in self.model.offers:
            sequences, first = np.unique(boundaries(self._like_training(dataset)), return_index=True)
            flat, names = np.add.reduceat(flat, first, axis=1), {"sequence": sequences}
        each = np.logaddexp.reduce(flat, axis=0) - np.log(len(flat))
        return pd.DataFrame({**names, "bound" if pointwise.name == "bound" else "elpd": each})

    def predict(self, *, n_draws: int = 400, **units: Sequence[Any]) -> xr.DataArray:
        """Posterior predictive draws `(chain, draw, point)`, in raw values, at points given by the names of their units.

        `fit.predict(user=["ann", "ann"], item=["alien", "brazil"])` predicts ratings, observed or not.

        Args:
            n_draws: Approximate number of draws, spread evenly over the chains.
            units: Index -> name of each point's unit; all of the same length.

        Raises:
            DataError: An index is missing or unknown, lengths differ, a unit was not in the fit, or a node is paired with itself.
            ModelError: The program requires a further array of the points, whose values at these points are unknown.
            ConfigError: `n_draws` is not at least 1.
        """
        checked("predict", {"n_draws": Count}, {"n_draws": n_draws})
        dataset, names_of = self.dataset, {name: np.atleast_1d(np.asarray(names)) for name, names in units.items()}
        if not dataset.index:
            raise DataError(
                f"predict: the data must be points with an index of units, such as ratings; got the table {dataset.name!r}."
            )
        if set(names_of) != set(dataset.index):
            raise DataError(f"predict: the arguments must be {', '.join(dataset.index)}; got {', '.join(names_of) or 'none'}.")
        further = [name for name in dataset.arrays if name != dataset.observed and dataset.points in dataset.dims[name]]
        if further:
            raise ModelError(
                f"predict: {self.model.name!r} requires {further[0]!r} of each {dataset.points}, which is unknown for new ones; "
                "use `log_likelihood`, or the draws in `fit.data`."
            )
        sizes = {len(names) for names in names_of.values()}
        if len(sizes) > 1:
            raise DataError(
                f"predict: all indices must have the same length; got {', '.join(f'{n}: {len(v)}' for n, v in names_of.items())}."
            )
        index = {}
        for name, names in names_of.items():
            kind = dataset.index[name].kind
            places = pd.Index(dataset.units[kind].astype(str)).get_indexer(names.astype(str))
            if (places < 0).any():
                unknown_unit = str(names[places < 0][0])
                raise DataError(f"predict: {name} {unknown_unit!r} is not a unit of the fit; see `fit.dataset.units[{kind!r}]`.")
            index[name] = places
        if sizes == {0}:
            raise DataError(f"predict: at least one {dataset.points} is required; got none.")
        if is_graph(dataset.index):
            loops = np.flatnonzero(np.equal(*index.values()))
            if len(loops):
                node = str(next(iter(names_of.values()))[loops[0]])
                raise DataError(f"predict: {dataset.points} {loops[0]} joins {node!r} with itself; the model has no self-loops.")
        arrays = {**tensors(self.model, dataset), **{name: torch.tensor(places) for name, places in index.items()}}
        arrays |= {"mask": None} if "mask" in arrays else {}
        arrays[dataset.observed] = torch.zeros(sizes.pop(), dtype=torch.float64)
        density = Density(self.model, arrays, dataset.array_dims, parameter_tensors(self.parameters))
        values = thinned_sites(select(self.sites(), [site.name for site in density.sites]), n_draws)
        with isolated(Seeds(self.seed).child("predict")):
            found = per_draw(density.predict, values)[dataset.observed]
        if dataset.transform is not None:
            found = dataset.transform.inverse(found)
        coords = {name: (dataset.points, names) for name, names in names_of.items()}
        return xr.DataArray(found, dims=("chain", "draw", dataset.points), coords=coords, name=dataset.observed)

    def imputations(self, *, n_draws: int = 400) -> xr.DataArray:
        """Posterior draws of the missing entries `(chain, draw, entry)`, in raw units.

        The coordinates `unit` and `feature` along `entry` identify the entries.

        Args:
            n_draws: Approximate number of draws, spread evenly over the chains.

        Raises:
            DataError: No entry is missing.
            ModelError: The model does not define `imputation`.
            ConfigError: `n_draws` is not at least 1.
        """
        checked("imputations", {"n_draws": Count}, {"n_draws": n_draws})
        dataset, where = self.dataset, np.argwhere(np.isnan(self.dataset.x))
        if not len(where):
            raise DataError(f"{dataset.name}: no entry is missing, so there is nothing to impute.")
        seeds = Seeds(self.seed).child("imputations")
        x = impute(self.model, dataset, thinned_sites(self.sites(), n_draws), seeds, where, self.parameters)
        if dataset.transform is not None:
            loc, scale = (np.broadcast_to(a, dataset.x.shape) for a in (dataset.transform.loc, dataset.transform.scale))
            x = x * scale[tuple(where.T)] + loc[tuple(where.T)]
        coords = {"unit": ("entry", dataset.units[where[:, 0]]), "feature": ("entry", dataset.features[where[:, 1]])}
        return xr.DataArray(x, dims=("chain", "draw", "entry"), coords=coords, name=dataset.observed)

    def _like_training(self, dataset: Any) -> Dataset:
        return self.dataset.conform(dataset)


def fit(  # one keyword for each user option
    model: LatentModel,
    dataset: Dataset | StoredDataset,
    method: Method,
    *,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    log: Callable[[str], object] | None = None,
    monitor: Callable[[int, Mapping[str, float]], object] | None = None,
    executor: str | None = None,
    n_workers: int | None = None,
    memory: int | str | None = None,
) -> Fit:
    """Fit a model to a dataset by an inference method.

    Args:
        model: The model.
        dataset: The data; missing entries are NaN or masked. For data on disk, which SVI fits with a `batch_size`, the fit's
            `dataset`, positions and log likelihood are those of `dataset.sample`.
        method: Inference method with its settings: `NUTS`, `ChEES`, `SVI`, `MAP` or `Exact`.
        seed: Random seed; equal seeds give equal arrays.
        progress: Whether to show progress bars on a terminal.
        checkpoint: Folder for finished results and for the state of interrupted chains and optimisers, from which the same call
            resumes. Draws are written before results are assembled, so that a later failure does not require a new fit.
        log: Function that is called occasionally with a line on the progress of the fit.
        monitor: Function that is called about once a second with the number of completed steps and numbers by name: the loss of
            SVI, or the acceptance rate, divergences and step size of MCMC; with an executor, the number of finished tasks.
        executor: Executor whose tasks are the chains of `NUTS`, or the restarts of `SVI` or `MAP`: `serial`, `process`,
            `dask:ADDRESS`, `ray:ADDRESS` or `submitit`. All give the same arrays; without one, the last digits may differ.
        n_workers: Number of workers of the executor on this machine; the number of CPUs if None.
        memory: Largest memory of this process, in bytes or as `"2 GiB"`. If the result needs more, large arrays are kept in
            temporary files in `checkpoint` or the system's folder for them, with the same values. No limit if None.

    Returns:
        The fit. Torch, Pyro, the random states and the working folder are left unchanged.

    Raises:
        ConfigError: An argument is not a model, a dataset or a method, or `memory` is too small for any way to fit.
        ModelError: Model, data and method are incompatible; names the site or setting.
        DataError: The model cannot be fitted to the data.
        InferenceError: A value became non-finite; names the site and step.
    """
    seeds = Seeds(seed)
    dataset = dataset.complete() if isinstance(dataset, Dataset) else dataset
    folder_of_parts = nullcontext(checkpoint) if executor is None else shared_folder(checkpoint, executor, method, n_workers)
    with folder_of_parts as folder:
        options: dict[str, Any] = {"progress": progress, "log": log, "separate": executor is not None, "memory": memory}
        problem = prepared(model, dataset, method, seed=seed, checkpoint=folder, **options)
        problem = replace(problem, monitor=monitor and Monitor(monitor))
        if executor is not None:
            compute_parts(problem, dataset, method, executor, n_workers)
        with problem.resources, one_thread():
            draws = finished_draws(problem, method)
            with isolated(seeds.child("posterior")):
                data = assemble(problem, dataset.sample, method, draws, seed)
    return Fit(model, dataset.sample, method, seed, data)


def _with_latent_dim(z: xr.DataArray) -> xr.DataArray:
    """Add a dim `latent` of size 1 to scalar positions `(chain, draw, unit)`; leave others unchanged."""
    return z if z.ndim > 3 else z.expand_dims("latent", axis=-1)
