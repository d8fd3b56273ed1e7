"""Estimates of what a fit needs on disk and in memory, from sizes that are known before it starts."""

import math
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from latentlab.data.dataset import Dataset
from latentlab.data.memory import BLOCK, MEMORY, Place, size
from latentlab.errors import ConfigError
from latentlab.inference.draws import Method
from latentlab.inference.guide_average import AT_ONCE
from latentlab.inference.lift import NUMBERS, draws_at_once
from latentlab.models.base import LatentModel
from latentlab.results.assemble import N_PREDICTIVE
from latentlab.symmetry.average import ANGLES, MOST_TOGETHER

LABEL_BYTES = 0.5
"""Approximate size of a drawn label, compressed."""
N_STATISTICS = 7
"""Sampler statistics of a draw."""
LIBRARIES = 450_000_000
"""Memory of Python with all libraries that a run imports."""
TABLES = 3
"""Copies of the data in memory: raw, as fitted, as tensors."""
IN_CALL = 6
"""Arrays of the size of the data, for each draw, in a vectorised call."""
STATE = 12
"""Vectors of the size of a point that a method holds for each chain or particle."""
TREE = 10
"""Vectors of the size of a point in a piece of NUTS's trajectory, of which each depth of the tree has one."""
AT_ANGLE = 12
"""Numbers for each draw and angle in the average of a guide over rotations."""
GRADIENT = 6
"""Arrays of the size of the data in the gradient of a chain or particle."""
BLOCKS = 8
"""Blocks of draws that are in memory at the same time."""
N_COMPARED = 200
"""Draws that a comparison holds in memory."""
PER_UNIT = 300
"""Numbers for each unit in the tables of a comparison and of the page."""
SITE_COPIES = 3
"""Copies of the draws of the program's sites while the chains are joined and saved."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a fit, in numbers of 8 bytes.

    Args:
        n_chains: Number of chains.
        n_draws: Number of draws in all chains.
        position: Positions of a draw.
        sites: Other sites of a draw.
        acted: Sites of a draw, other than positions, that are stored aligned as well.
        pointwise: Densities of the points of a draw.
        point: Length of the vector that a sampler or an optimiser moves; 0 for maximum likelihood.
        vectors: Number of such vectors that the method holds at the same time.
        gradient: Arrays in their gradients.
        written: Number of such vectors that the method writes to their place: draws, and half of the warm-up.
        held: Numbers that the method holds until its draws are complete.
        block: Largest number of values in a vectorised call of the method.
        n_sites: Number of sites other than positions.
        n_units: Number of units.
        observed: The observed array.
        data: All arrays of the data.
        labels: Whether the positions are labels.
        constant: Whether all draws of the sites are equal, at a point estimate.
    """

    n_chains: int
    n_draws: int
    position: int
    sites: int
    acted: int
    pointwise: int
    point: int
    vectors: int
    gradient: int
    written: int
    held: int
    block: int
    n_sites: int
    n_units: int
    observed: int
    data: int
    labels: bool
    constant: bool

    @classmethod
    def of(cls, model: LatentModel, method: Method, sample: Dataset, outline: xr.DataTree) -> "Sizes":
        """Sizes of a fit whose result has the `outline`."""
        sites = {str(name): array.size for name, array in outline["posterior"].data_vars.items()}
        moved = sum(sites.values())
        columns = 1 if model.is_discrete else model.position_columns() or 1
        position = sum(sites.pop(one.site, sample.sizes[kind] * columns) for kind, one in model.kinds.items() if kind)
        n_chains, n_restarts = getattr(method, "n_chains", 1), getattr(method, "n_restarts", 1)
        point, streams = method.kind == "point", getattr(method, "streams", False)
        each = sum(sites.values()) if streams or point else moved
        together = 0 if point else getattr(method, "n_particles", n_chains)
        share = min(1.0, (getattr(method, "batch_size", None) or math.inf) / max(1, sample.n_points))
        averaged = AT_ANGLE * ANGLES[-1] * min(method.n_draws, MOST_TOGETHER)
        roots = {"full_rank": moved, "low_rank": math.isqrt(moved) + 1}.get(getattr(method, "guide", ""), 0)
        return cls(
            n_chains=n_chains,
            n_draws=n_chains * method.n_draws,
            position=position,
            sites=sum(sites.values()),
            acted=sum(size for name, size in sites.items() if model.exchanges.dim in model.dims[name]),
            pointwise=sample.n_points * ("bound" not in model.offers) * (1 + ("leave_one_out" in model.offers)),
            point=0 if point else moved,
            vectors=together * (STATE + TREE * getattr(method, "max_tree_depth", 0)),
            gradient=int(together * GRADIENT * sample.x.size * share),
            written=n_chains * n_restarts * (method.n_draws + getattr(method, "n_warmup", 0) // 2) * streams,
            held=each * (SITE_COPIES * n_chains + n_restarts) * method.n_draws + moved * roots * STATE,
            block=max(draws_at_once(moved, AT_ONCE) * moved, averaged) if method.kind == "vi" else 0,
            n_sites=len(sites),
            n_units=sum(len(names) for names in sample.kinds.values()),
            observed=sample.x.size,
            data=sum(array.size for array in (*sample.arrays.values(), *sample.truth.values())),
            labels=model.is_discrete,
            constant=point,
        )

    def disk(self) -> int:
        """Estimates the largest size of the result and its checkpoints in bytes."""
        each = 2 * self.position * (LABEL_BYTES / 8 if self.labels else 1)
        if not self.constant:  # the constant draws of a point estimate compress to almost nothing
            checkpoints = 2 * (self.sites + self.position * (self.point > self.sites))
            each += self.sites + self.acted + self.pointwise + checkpoints + self.n_sites + N_STATISTICS
        predictive = 2 * min(N_PREDICTIVE, self.n_draws) * self.observed
        return int(8 * (self.n_draws * each + predictive + 2 * self.observed + self.data))

    def parts(self) -> dict[str, int]:
        """Estimates what a fit, a comparison and a page hold in memory apart from large arrays of draws, in bytes by purpose."""
        in_call = IN_CALL * draws_at_once(self.observed) * self.observed
        one_block = max(draws_at_once(self.position) * self.position, self.block)
        numbers = {
            "the data": TABLES * self.data + max(in_call, self.vectors * self.point + self.gradient),
            "one block of draws": BLOCKS * BLOCK + min(one_block, NUMBERS),
            "the units": (min(N_COMPARED, self.n_draws) + self.n_chains**2) * self.position + PER_UNIT * self.n_units,
            "the draws of the sites": self.held + SITE_COPIES * self.n_draws * (self.n_sites + N_STATISTICS),
        }
        return {"libraries": LIBRARIES, **{name: 8 * n for name, n in numbers.items()}}

    def large(self) -> int:
        """Estimates the arrays of draws that are kept in temporary files if the memory is limited, in bytes."""
        predictive = 2 * min(N_PREDICTIVE, self.n_draws) * self.observed
        return 8 * (self.n_draws * (2 * self.position + self.pointwise) + predictive)

    def files(self) -> int:
        """Estimates the temporary files of a run whose memory is limited, in bytes: draws in three forms, and what is written."""
        return 3 * self.large() + 8 * self.written * self.point

    def place(self, folder: Path, memory: int) -> Place:
        """Returns the place of large arrays: memory if all fits into it, else temporary files in the folder.

        Raises:
            ConfigError: Not even the other parts fit into the memory.
        """
        parts = self.parts()
        needed = sum(parts.values())
        if needed > memory:
            of = ", ".join(f"{size(n)} for {name}" for name, n in parts.items())
            largest = max((name for name in parts if name != "libraries"), key=lambda name: parts[name])
            sizes = f"must be at least {size(needed)} for this fit ({of}); got {size(memory)}"
            raise ConfigError(f"memory: {sizes}. Increase it, or use {CURES[largest]}.")
        if needed + 2 * self.large() + 8 * self.written * self.point <= memory:
            return MEMORY
        folder.mkdir(parents=True, exist_ok=True)
        return Place(folder)


CURES = {
    "the data": "fewer units or chains, or minibatches (`batch_size` of svi) of data on disk",
    "one block of draws": "fewer units",
    "the units": "fewer units or chains",
    "the draws of the sites": "fewer draws (`n_draws`) or chains",
}
"""Part of the memory -> what reduces it."""
