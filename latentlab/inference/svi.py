r"""Stochastic variational inference: a guide $q(u)$ fitted by maximising the evidence lower bound.

$$ \mathrm{ELBO}(q) = \mathbb E_{q}[\log \tilde p(u) - \log q(u)] \le \log p(x), $$
with $u$ on the unconstrained scale. Gaussian guides are in `guides.py`. A guide defined by the model is a Pyro program, and
a model's parameters are estimated only with such a guide. If every site belongs to a unit, each unit n has separate importance
weights $w_{nk} = p(x_n, z_{nk}) / q(z_{nk} \mid x_n)$. The objective can then be the importance-weighted bound
$$ \sum_n \mathbb E_q\Big[\log \frac1K \sum_{k=1}^K w_{nk}\Big], $$
which is the ELBO for K = 1 and rises to $\log p(x)$ with K.
"""

import os
import re
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyro
import torch
from annotated_types import Ge, Lt

from latentlab.errors import ConfigError, DataError, ModelError
from latentlab.inference.advi import check_gaussian_guide, fit_group, fit_restarts
from latentlab.inference.capture import Plan
from latentlab.inference.draws import Draws, Problem, from_checkpoint
from latentlab.inference.encoder import is_amortised
from latentlab.inference.guide_average import over_symmetry
from latentlab.inference.guides import GUIDES
from latentlab.inference.lift import constrain_draws, ends, over_draws
from latentlab.inference.model_guide import check_model_guide, fit_restart, objective, unused_parameters
from latentlab.inference.parameters import PARAMETER, at_start
from latentlab.inference.svi_loss import check_guide
from latentlab.seeds import isolated
from latentlab.settings import Count, Positive, Whole, frozen_settings

GuideName = Literal["model", "mean_field", "full_rank", "low_rank"]
Objective = Literal["elbo", "iwae"]
Precision = Literal["double", "single"]


@frozen_settings
class SVI:
    """Variational inference with a Gaussian guide on the unconstrained scale, or with a guide defined by the model.

    The optimiser is Adam. Its learning rate is constant for the first half of the steps, and then falls to a hundredth. If the
    model gives the ELBO of its guide in closed form (`exact_elbo`), the optimiser is L-BFGS with at most `n_steps` steps. The
    full-rank guide is a mean-field one for the first quarter of the steps, and is then fitted in coordinates of equal curvature.

    Args:
        guide: `model` (defined by the model), `mean_field`, `full_rank` or `low_rank`.
        n_steps: Number of steps of the optimiser.
        learning_rate: Initial learning rate of Adam.
        n_particles: Number of draws of the guide in a step.
        batch_size: Number of units in a step; all if None. Needs positions that are integrated out, or an amortised guide.
        n_restarts: Number of independent fits, in one batch if that is faster. All losses are kept; the best ELBO is the result.
        patience: Stop once the smoothed ELBO has not risen for this many steps; None never stops early.
        n_draws: Number of draws from the fitted guide, in one chain.
        objective: `elbo`, or `iwae`: the importance-weighted bound with `n_particles` samples for each unit.
        kl_warmup: Number of steps in which the weight of the units' latent sites grows to its full value (`guide="model"` only).
        held_out: Fraction of the units that are held out of the steps (`guide="model"` only). The result has the parameters with
            the best ELBO of these units, to which `patience` then applies.
        compiled: Whether to compile the step to machine code. This takes about twelve seconds the first time, is cached for later
            processes, and changes the last digits. If None, the step is compiled when the run is long enough.
        precision: Precision of the loss and its gradient in a step. `single` (float32) needs `guide="model"`, and a model whose
            sites all belong to units: minibatch noise is then far larger than rounding errors. Parameters and results stay in
            float64.
        device: Device of the steps: `cpu`, `cuda` or a numbered one such as `cuda:1`; machine code runs on the CPU only. All
            other computations and the results are on the CPU.

    References:
        Kucukelbir et al. 2017, Automatic Differentiation Variational Inference, JMLR 18(14).
        Roeder, Wu & Duvenaud 2017, Sticking the Landing, NeurIPS.
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, ICLR.
    """

    guide: GuideName = "full_rank"
    n_steps: Count = 4000
    learning_rate: Positive = 0.02
    n_particles: Count = 8
    batch_size: Count | None = None
    n_restarts: Count = 1
    patience: Count | None = None
    n_draws: Count = 2000
    objective: Objective = "elbo"
    kl_warmup: Whole = 0
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    compiled: bool | None = None
    precision: Precision = "double"
    device: str = "cpu"

    name: ClassVar[str] = "svi"
    kind: ClassVar[str] = "vi"
    streams: ClassVar[bool] = True
    """Whether draws are written to their place as they are made."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"SVI: `device` must be cpu, cuda, or cuda:N with a device number N; got {self.device!r}.")
        if self.compiled and self.device != "cpu":
            raise ConfigError(
                f"SVI: `compiled` must be false or null if `device` is {self.device!r}; got true. "
                "Machine code runs on the CPU only."
            )
        for field in ("objective", "kl_warmup", "held_out", "precision"):
            if self.guide != "model" and getattr(self, field) not in ("elbo", 0, "double"):
                raise ConfigError(f"SVI: `{field}` is available with guide='model' only; got guide={self.guide!r}.")

    def plan(self) -> Plan:
        """Return the intended use of the graph of a step."""
        return Plan(self.n_steps * self.n_restarts, self.compiled, single=self.precision == "single", device=self.device)

    def parts(self) -> list[str]:
        """Return the names of the restarts."""
        return [f"restart-{i}" for i in range(self.n_restarts)]

    def part(self, problem: Problem, i: int) -> dict[str, np.ndarray]:
        """Return the arrays of a restart, from its checkpoint or computed."""
        if self.guide == "model":
            return from_checkpoint(problem, f"restart-{i}", lambda: fit_restart(problem, self, i))
        return fit_group(problem, self, range(i, i + 1))[0]

    def run(self, problem: Problem) -> Draws:
        together = self.guide != "model" and not problem.separate
        runs = fit_restarts(problem, self) if together else [self.part(problem, i) for i in range(self.n_restarts)]
        if problem.processes.rank:
            return Draws({})
        elbo = np.array([float(np.mean(run["lp"] - run["log_q"])) for run in runs])
        best = runs[int(np.argmax(elbo))]
        values = constrain_draws(problem.density, best["u"][None], problem.place)
        parameters = {n.removeprefix(PARAMETER): best[n] for n in best if n.startswith(PARAMETER)}
        stats = {"lp": best["lp"][None], "log_q": best["log_q"][None]}
        averaged = self._averaged(problem, best, values)
        stats["log_q_averaged"] = best["log_q"][None] if averaged is None else averaged[None]
        longest = max(len(run["loss"]) for run in runs)
        losses = np.stack([np.pad(run["loss"], (0, longest - len(run["loss"])), mode="edge") for run in runs])
        unused = unused_parameters(problem, self) if self.guide == "model" else []
        attrs = {
            "unused": ", ".join(unused),
            "guide": self.guide,
            "elbo": float(elbo.max()),
            "averaged": int(averaged is not None),
        }
        restarts = ends(problem.density, [run.get("loc", run["u"].mean(axis=0)) for run in runs])
        return Draws(values, stats, {"loss": losses, "elbo": elbo}, restarts, attrs, parameters)

    def check(self, problem: Problem) -> None:
        """Raise an error if the settings are not possible with the model, the data or the available devices."""
        density = problem.density
        number = int(self.device.partition(":")[2] or 0)
        if self.device != "cpu" and number >= (n_devices := torch.cuda.device_count()):
            raise ConfigError(f"SVI: `device` {self.device!r} does not exist; torch finds {n_devices} CUDA devices.")
        if self.guide == "model":
            if "guide" not in problem.model.offers:
                raise ModelError(
                    f"guide='model' needs a model that defines `guide`; {problem.model.name!r} has none: use {', '.join(GUIDES)}."
                )
            check_guide(problem)
            self._check_particles(problem)
            self._check_exact_bound(problem)
        elif problem.model.parameters or density.own_parameters:
            raise ModelError(
                f"{problem.model.name!r} has parameters, which are estimated with guide='model' only; got guide={self.guide!r}."
            )
        for selected, what in (
            (self.objective == "iwae", "objective 'iwae'"),
            (self.precision == "single", "precision 'single'"),
        ):
            if selected and not is_amortised(density):
                others = [site.name for site in density.sites if site.name not in density.point_sites]
                raise ModelError(
                    f"{what} needs a model whose sites all belong to units; {problem.model.name!r} also has {', '.join(others)}."
                )
        self._check_batches(problem)
        if problem.processes.size > 1:
            self._check_processes(problem)

    def _check_batches(self, problem: Problem) -> None:
        """Raise an error if units cannot be held out or taken in batches."""
        density = problem.density
        split = "held_out" if self.held_out else "batch_size"
        transposed = next((n for n in density.arrays if density.points in density.dims.get(n, ())[1:]), None)
        if transposed is not None and (self.held_out or self.batch_size is not None):
            raise DataError(
                f"SVI: `{split}` needs {density.points!r} as the first dim of {transposed!r}; got {density.dims[transposed]}."
            )
        if (self.held_out or self.batch_size is not None) and (
            "leave_one_out" in problem.model.offers or problem.model.takes("sequence")
        ):
            raise ModelError(f"SVI: `{split}` is not available for {problem.model.name!r}: the steps of a series are dependent.")
        if self.held_out and problem.model.takes("row"):
            raise ModelError(
                f"SVI: `held_out` needs a guide that is amortised over units; that of {problem.model.name!r} has parameters for "
                "each unit, which those held out would keep at their start. Set `encoder`, or `held_out=0`."
            )
        if self.held_out:
            n_held_out = round(self.held_out * density.n_points)
            if not 0 < n_held_out < density.n_points:
                raise ConfigError(
                    f"SVI: `held_out` must leave a {density.points} in each part; got {self.held_out} of {density.n_points}."
                )
            if self.batch_size is not None and self.batch_size > density.n_points - n_held_out:
                raise ConfigError(
                    f"SVI: `batch_size` must be at most the {density.n_points - n_held_out} {density.points}s that are not held "
                    f"out; got {self.batch_size}."
                )
        if self.batch_size is not None:
            if self.batch_size > density.n_points:
                raise ConfigError(
                    f"SVI: `batch_size` must be at most the {density.n_points} {density.points}s; got {self.batch_size}."
                )
            if density.point_sites and self.guide != "model":
                raise ModelError(
                    f"SVI: `batch_size` needs a guide that is amortised over units, since site {density.point_sites[0]!r} has a "
                    f"value for each unit; the guide {self.guide!r} is not. Marginalise the site, or use guide='model'."
                )

    def _check_processes(self, problem: Problem) -> None:
        """Raise an error if several processes cannot share the batches."""
        n, n_held_out = problem.processes.size, round(self.held_out * problem.density.n_points)
        if self.batch_size is None or self.batch_size < n or 0 < n_held_out < n:
            raise ConfigError(
                f"SVI: `batch_size` and the number of held-out {problem.density.points}s must be at least {n} for {n} processes; "
                f"got {self.batch_size} and {n_held_out}."
            )
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(
                f"SVI: `device` must be cpu or cuda for {n} processes, each with a GPU of its own; got {self.device!r}."
            )
        n_here = int(os.environ.get("LOCAL_WORLD_SIZE", n))
        if self.device == "cuda" and n_here > torch.cuda.device_count():
            raise ConfigError(f"SVI: each process needs a GPU; got {n_here} processes and {torch.cuda.device_count()} GPUs.")
        (check_model_guide if self.guide == "model" else check_gaussian_guide)(problem, self)

    def _check_exact_bound(self, problem: Problem) -> None:
        """Raise an error if settings of stochastic steps are given for a bound in closed form."""
        if "exact_elbo" not in problem.model.offers:
            return
        for field, value in (
            ("batch_size", None),
            ("held_out", 0),
            ("kl_warmup", 0),
            ("objective", "elbo"),
            ("precision", "double"),
        ):
            if getattr(self, field) != value:
                raise ConfigError(
                    f"SVI: `{field}` must be {value} for {problem.model.name!r}, whose bound is in closed form; got "
                    f"{getattr(self, field)!r}."
                )
        if problem.processes.size > 1:
            raise ConfigError(f"SVI: the bound of {problem.model.name!r} is in closed form; use one process.")

    def _check_particles(self, problem: Problem) -> None:
        """Raise an error if a program cannot be vectorised over particles, if particles are drawn in one batch."""
        if not is_amortised(problem.density) or (self.n_particles == 1 and not self.held_out):
            return
        rows = tuple(problem.density.arrays[name][:2] for name in problem.density.point_arrays())
        try:
            with isolated(problem.seeds.child("check")), pyro.validation_enabled(False), at_start(problem.model) as bound:
                objective(replace(problem, model=bound), self, problem.density.with_points(rows), 1.0, 1.0, 3)
        except Exception as error:  # a program can raise any exception
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{problem.model.name!r} cannot be evaluated with a leading axis of particles; index with `...`, or set "
                f"n_particles=1 and held_out=0: {type(error).__name__}: {reason}"
            ) from error

    def _averaged(self, problem: Problem, best: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> np.ndarray | None:
        """Compute log q of the draws, averaged over the model's symmetry; None if this is impossible."""
        if self.guide == "model":
            return best.get("log_q_averaged")
        density = problem.density
        guide = GUIDES[self.guide].from_arrays(best)
        center = {k: v[0, 0] for k, v in constrain_draws(density, best["loc"][None, None]).items()}

        def flat(value: Any) -> dict[str, torch.Tensor]:
            u = density.unconstrain_fast(value)
            return {"u": u, "jacobian": density.log_jacobian(u)}

        def log_q(sites: dict[str, np.ndarray]) -> np.ndarray:
            at = over_draws(flat, sites, block=4096)
            return guide.log_prob(torch.from_numpy(at["u"])).numpy() - at["jacobian"]

        draws = {site.name: values[site.name][0] for site in density.sites}
        return over_symmetry(problem, log_q, draws, best["u"], best["log_q"], center)
