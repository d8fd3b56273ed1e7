"""Tables of models, datasets, embeddings, metrics, methods, networks and trackers.

An entry is a string `module:name`, which is resolved on first use, so that listing a table imports no large library. To add
an entry to latentlab, write its file and one line here. An installed package adds entries by the entry-point group of the
table (`latentlab.models`, `latentlab.datasets`, ...). A plugin file adds entries while `plugins` is active: every subclass of
`LatentModel` under its `name`, and the entries of its dicts `datasets`, `embeddings`, `metrics`, `networks` and `trackers` by
name.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from latentlab.errors import ConfigError, unknown


class Table:
    """Named entries of one kind, each a `module:name` string (or, from a plugin, the object itself)."""

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._entries = entries
        self._plugins: dict[str, Any] = {}

    def _all(self) -> dict[str, Any]:
        return {**self._entries, **_installed(f"latentlab.{self.kind}s"), **self._plugins}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def load(self, name: str) -> Any:
        """Load the object called `name`.

        Raises:
            ConfigError: The entry does not exist; lists the valid names.
        """
        entries = self._all()
        if name not in entries:
            raise ConfigError(unknown(self.kind, name, entries))
        entry = entries[name]
        return resolve(entry) if isinstance(entry, str) else entry

    @property
    def built_in(self) -> frozenset[str]:
        """Names of the built-in entries."""
        return frozenset(self._entries)

    def classes(self) -> dict[str, str]:
        """Modules of the built-in entries by the name of their object."""
        return {name: module for module, _, name in (entry.partition(":") for entry in self._entries.values())}

    def describe(self, name: str) -> str:
        """First line of the entry's docstring, read from the source file without importing the module if possible."""
        entry = self._all()[name]
        doc = _docstring(entry) if isinstance(entry, str) else entry.__doc__
        return (doc or "").strip().split("\n")[0]

    @contextlib.contextmanager
    def added(self, entries: dict[str, Any]) -> Iterator[None]:
        """Add entries to the table within a `with` block."""
        clash = sorted(set(entries) & set(self._entries))
        if clash:
            raise ConfigError(f"{clash[0]!r} is the name of a built-in {self.kind}; rename the {self.kind} of the plugin.")
        before = self._plugins
        self._plugins = {**before, **entries}
        try:
            yield
        finally:
            self._plugins = before


def resolve(entry: str) -> Any:
    """Import the object of a `module:name` string."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def _installed(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=group)}


def _docstring(entry: str) -> str | None:
    module, _, name = entry.partition(":")
    package, _, leaf = module.rpartition(".")
    roots = [Path(p) for p in (importlib.import_module(package.split(".")[0]).__path__ if package else sys.path)]
    relative = Path(*package.split(".")[1:]) / f"{leaf}.py"
    source = next((root / relative for root in roots if (root / relative).is_file()), None)
    if source is None:
        return resolve(entry).__doc__
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node)
    return None


PLUGIN = "latentlab_plugin_"
"""Prefix of the module names of plugins."""


@contextlib.contextmanager
def plugins(paths: Sequence[str | Path]) -> Iterator[None]:
    """Add the models, datasets, embeddings, metrics, networks and trackers of plugin files to the tables within a `with` block.

    Raises:
        ConfigError: A file is missing, cannot be imported, defines nothing, or uses a name that is taken.
    """
    by_kind: dict[str, dict[str, Any]] = {kind: {} for kind in PLUGIN_TABLES}
    for path in paths:
        for kind, entries in _plugin(Path(path)).items():
            duplicates = sorted(set(entries) & set(by_kind[kind]))
            if duplicates:
                raise ConfigError(f"plugin {str(path)!r}: another plugin also has a {kind} named {duplicates[0]!r}; rename one.")
            by_kind[kind].update(entries)
    with contextlib.ExitStack() as stack:
        for kind, entries in by_kind.items():
            stack.enter_context(PLUGIN_TABLES[kind].added(entries))
        yield


def plugin_line(error: BaseException) -> str:
    """Position `FILE, line N` in a plugin at which an error was raised; empty if it was raised elsewhere."""
    current: BaseException | None = error
    while current is not None:
        frames = [(frame, line) for frame, line in traceback.walk_tb(current.__traceback__)]
        for frame, line in reversed(frames):
            if str(frame.f_globals.get("__name__", "")).startswith(PLUGIN):
                return f"{frame.f_code.co_filename}, line {line}"
        current = current.__cause__ or current.__context__
    return ""


def reason(error: BaseException) -> str:
    """Describe an error of a user's code in one line, with its position if it was raised in a plugin."""
    where = plugin_line(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{f' ({where})' if where else ''}"


def _plugin(path: Path) -> dict[str, dict[str, Any]]:
    """Import a plugin and return its entries for each table."""
    if not path.is_file():
        raise ConfigError(f"plugin {str(path)!r}: no such file.")
    name = f"{PLUGIN}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {str(path)!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        where = plugin_line(error)
        raise ConfigError(
            f"plugin {str(path)!r} cannot be imported: {type(error).__name__}: {error}{f' ({where})' if where else ''}"
        ) from error
    by_kind = {"model": _plugin_models(path, module)}
    for kind in (kind for kind in PLUGIN_TABLES if kind != "model"):
        by_kind[kind] = _plugin_table(path, module, kind)
    if not any(by_kind.values()):
        raise ConfigError(
            f"plugin {str(path)!r} defines no subclass of latentlab.LatentModel, and none of the dicts `datasets`, `embeddings`, "
            '`metrics`, `networks` and `trackers`, such as `embeddings = {"name": function}`.'
        )
    return by_kind


def _plugin_models(path: Path, module: ModuleType) -> dict[str, Any]:
    base = resolve("latentlab.models.base:LatentModel")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    models: dict[str, Any] = {}
    for one in classes:
        name = getattr(one, "name", None)
        if not isinstance(name, str):
            raise ConfigError(f"plugin {str(path)!r}: the model {one.__name__} has no `name`.")
        if name in models:
            raise ConfigError(
                f"plugin {str(path)!r}: two models have the name {name!r}, {models[name].__name__} and {one.__name__}."
            )
        models[name] = one
    return models


def _plugin_table(path: Path, module: ModuleType, kind: str) -> dict[str, Any]:
    table = vars(module).get(f"{kind}s")
    if table is None or isinstance(table, ModuleType):
        return {}
    where = f"plugin {str(path)!r}: `{kind}s`"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a dict from names to functions; got {type(table).__name__}.")
    for name, entry in table.items():
        if not isinstance(name, str) or not callable(entry):
            raise ConfigError(f"{where} must be a dict from names to functions; got {name!r}: {entry!r:.60}.")
        if kind == "metric" and (not hasattr(entry, "direction") or entry.name != name):
            raise ConfigError(
                f"{where}: {name!r} must be a function with this name and the decorator `latentlab.compare.metric.metric`, which "
                f"declares its invariances; got {entry!r:.60}."
            )
    return dict(table)


MODELS = Table(
    "model",
    {
        "ppca": "latentlab.models.ppca:PPCA",
        "factor_analysis": "latentlab.models.factor_analysis:FactorAnalysis",
        "gaussian_mixture": "latentlab.models.gaussian_mixture:GaussianMixture",
        "dp_mixture": "latentlab.models.gaussian_mixture:DPMixture",
        "bernoulli_mixture": "latentlab.models.count_mixtures:BernoulliMixture",
        "poisson_mixture": "latentlab.models.count_mixtures:PoissonMixture",
        "gaussian_hmm": "latentlab.models.gaussian_hmm:GaussianHMM",
        "categorical_hmm": "latentlab.models.count_hmms:CategoricalHMM",
        "poisson_hmm": "latentlab.models.count_hmms:PoissonHMM",
        "vae": "latentlab.models.vae:VAE",
        "linear_vae": "latentlab.models.linear_vae:LinearVAE",
        "state_space": "latentlab.models.state_space:LinearGaussianStateSpace",
        "matrix_factorization": "latentlab.models.matrix_factorization:MatrixFactorization",
        "random_dot_product": "latentlab.models.random_dot_product:RandomDotProduct",
        "gplvm": "latentlab.models.gplvm:GPLVM",
        "sparse_gplvm": "latentlab.models.sparse_gplvm:SparseGPLVM",
    },
)

METHODS = Table(
    "method",
    {
        "svi": "latentlab.inference.svi:SVI",
        "map": "latentlab.inference.map:MAP",
        "nuts": "latentlab.inference.nuts:NUTS",
        "chees": "latentlab.inference.chees:ChEES",
        "exact": "latentlab.inference.exact:Exact",
    },
)

DATASETS = Table(
    "dataset",
    {
        "wine": "latentlab.data.tables:wine",
        "iris": "latentlab.data.tables:iris",
        "breast_cancer": "latentlab.data.tables:breast_cancer",
        "digits": "latentlab.data.tables:digits",
        "file": "latentlab.data.file:file",
        "images": "latentlab.data.images:images",
        "sunspots": "latentlab.data.history:sunspots",
        "nile": "latentlab.data.history:nile",
        "macrodata": "latentlab.data.history:macrodata",
        "linear_gaussian": "latentlab.data.simulators:linear_gaussian",
        "gaussian_mixture": "latentlab.data.mixtures:gaussian_mixture",
        "geyser": "latentlab.data.mixtures:geyser",
        "poisson_mixture": "latentlab.data.mixtures:poisson_mixture",
        "latent_classes": "latentlab.data.mixtures:latent_classes",
        "hidden_markov": "latentlab.data.markov:hidden_markov",
        "ratings": "latentlab.data.points:ratings",
        "edges": "latentlab.data.points:edges",
        "karate": "latentlab.data.points:karate",
        "grunfeld": "latentlab.data.points:grunfeld",
        "swiss_roll": "latentlab.data.manifolds:swiss_roll",
        "s_curve": "latentlab.data.manifolds:s_curve",
        "severed_sphere": "latentlab.data.manifolds:severed_sphere",
        "torus_patch": "latentlab.data.manifolds:torus_patch",
        "helix": "latentlab.data.manifolds:helix",
        "three_phase_flow": "latentlab.data.pipe:three_phase_flow",
    },
)

EMBEDDINGS = Table(
    "embedding",
    {
        "pca": "latentlab.embeddings.linear:pca",
        "factor_analysis": "latentlab.embeddings.linear:factor_analysis",
        "kernel_pca": "latentlab.embeddings.linear:kernel_pca",
        "isomap": "latentlab.embeddings.manifold:isomap",
        "lle": "latentlab.embeddings.manifold:lle",
        "spectral": "latentlab.embeddings.manifold:spectral",
        "mds": "latentlab.embeddings.manifold:mds",
        "tsne": "latentlab.embeddings.neighbor:tsne",
        "umap": "latentlab.embeddings.neighbor:umap",
        "pacmap": "latentlab.embeddings.pacmap:pacmap",
        "kmeans": "latentlab.embeddings.clusters:kmeans",
        "spectral_clustering": "latentlab.embeddings.clusters:spectral_clustering",
        "agglomerative": "latentlab.embeddings.clusters:agglomerative",
        "window_pca": "latentlab.embeddings.windows:window_pca",
        "window_kmeans": "latentlab.embeddings.windows:window_kmeans",
        "viterbi": "latentlab.embeddings.sequences:viterbi",
        "autoencoder": "latentlab.embeddings.autoencoder:autoencoder",
        "truncated_svd": "latentlab.embeddings.spectral_factors:truncated_svd",
        "adjacency_spectral": "latentlab.embeddings.spectral_factors:adjacency_spectral",
        "file": "latentlab.embeddings.file:file",
    },
)

METRICS = Table(
    "metric",
    {
        "displacement": "latentlab.compare.procrustes:displacement",
        "procrustes_orthogonal": "latentlab.compare.procrustes:procrustes_orthogonal",
        "procrustes_similarity": "latentlab.compare.procrustes:procrustes_similarity",
        "procrustes_affine": "latentlab.compare.procrustes:procrustes_affine",
        "cca": "latentlab.compare.subspace:cca",
        "principal_angle": "latentlab.compare.subspace:principal_angle",
        "cka": "latentlab.compare.kernel:cka",
        "cka_rbf": "latentlab.compare.kernel:cka_rbf",
        "distance_correlation": "latentlab.compare.kernel:distance_correlation",
        "rsa": "latentlab.compare.kernel:rsa",
        "neighbor_overlap": "latentlab.compare.neighbors:neighbor_overlap",
        "trustworthiness": "latentlab.compare.neighbors:trustworthiness",
        "continuity": "latentlab.compare.neighbors:continuity",
        "co_ranking": "latentlab.compare.neighbors:co_ranking",
        "geodesic_distance_correlation": "latentlab.compare.geodesic:geodesic_distance_correlation",
        "local_isometry": "latentlab.compare.isometry:local_isometry",
        "gromov_wasserstein": "latentlab.compare.transport:gromov_wasserstein",
        "adjusted_rand": "latentlab.compare.agreement:adjusted_rand",
        "normalized_mutual_information": "latentlab.compare.agreement:normalized_mutual_information",
        "variation_of_information": "latentlab.compare.agreement:variation_of_information",
        "matched_accuracy": "latentlab.compare.agreement:matched_accuracy",
    },
)

TRACKERS = Table(
    "tracker",
    {
        "mlflow": "latentlab.tracking.mlflow:MLflow",
        "tensorboard": "latentlab.tracking.tensorboard:TensorBoard",
    },
)

NETWORKS = Table(
    "network",
    {
        "convolutional": "latentlab.models.architectures.built_in:convolutional",
        "residual": "latentlab.models.architectures.built_in:residual",
        "recurrent": "latentlab.models.architectures.built_in:recurrent",
    },
)

KINDS = {f"{table.kind}s": table for table in (MODELS, DATASETS, EMBEDDINGS, METRICS, METHODS, NETWORKS, TRACKERS)}
"""Table of each kind of entries."""

PLUGIN_TABLES = {
    "model": MODELS,
    "dataset": DATASETS,
    "embedding": EMBEDDINGS,
    "metric": METRICS,
    "network": NETWORKS,
    "tracker": TRACKERS,
}
"""Tables to which a plugin can add entries."""
