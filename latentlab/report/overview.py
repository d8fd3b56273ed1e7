"""Section 1: data, model, method and settings of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

from latentlab.registry import EMBEDDINGS, METHODS
from latentlab.report.docstrings import docs
from latentlab.report.items import Formulas, Item, Section, Table, Text, count, listed, shown
from latentlab.report.source import Source

PROPER_NAMES = ("Bayes", "Bernoulli", "Dirichlet", "Gauss", "Hamilton", "Markov", "Poisson")
"""Beginnings of words that keep their capital letter in brackets."""


def section(source: Source) -> Section:
    """Build the section: data, model, method, embeddings, and all settings."""
    items: list[Item] = [Text((data_sentence(source),)), *_notes(source)]
    items += _model(source)
    items += [Text((method_sentence(source),)), *_embeddings(source)]
    if source.config.get("held_out"):
        noun = "sequences" if len(source.sequences or []) > 1 else f"{source.points}s"
        items.append(Text((f"{source.config['held_out']:.0%} of the {noun} were held out of the fit and scored afterwards.",)))
    items.append(Table.of("settings", "Full configuration, including default values", _settings(source.config), folded=True))
    return Section("overview", "Data, model and settings", tuple(items))


def data_sentence(source: Source) -> str:
    """Describe the data: name, sizes, scale, sequences, missing entries."""
    data, section = source.run.info["data"], source.config["dataset"]
    sizes = listed([count(int(n), dim) for dim, n in data.items() if dim not in ("name", "sha256")])
    subject = "The data were" if source.index or len(source.features) < 2 else "Each column was"
    scaled = f" {subject} centred and scaled to standard deviation 1." if section.get("standardize") else ""
    missing = float(source.observed.isnull().mean()) if source.observed.dtype.kind == "f" else 0.0
    gaps = f" {missing:.1%} of the entries are missing." if missing else ""
    n = len(source.units)
    fitted = f" The model was fitted to {count(n, 'unit')}." if n != data.get("unit", n) else ""
    n_sequences = len(source.sequences or [])
    steps = f" The units are time steps{f' in {n_sequences} sequences' if n_sequences > 1 else ''}." if n_sequences else ""
    return f"The data set is “{data['name']}”, with {sizes}.{scaled}{steps}{gaps}{fitted}"


def method_sentence(source: Source) -> str:
    """Describe the inference: method, draws, seed."""
    section = dict(source.config["inference"])
    name = section.pop("name")
    posterior = source.tree["posterior"].sizes
    draws = f"{count(posterior['chain'], 'chain')} of {count(posterior['draw'], 'draw')}"
    kind = {
        "mcmc": f"The posterior sample has {draws}.",
        "vi": f"The posterior is represented by {count(posterior['draw'], 'draw')} from the approximation.",
        "point": f"The posterior sample has {count(posterior['draw'], 'draw')} of the {source.position_noun}, given a point estimate of all other "
        "parameters.",
    }[source.kind]
    summary = in_brackets(docs(METHODS.load(name)).summary) if name in METHODS else ""
    return f"The method is {method_name(source)}{summary}. {kind} The seed is {source.config.get('seed', 0)}."


def in_brackets(summary: str) -> str:
    """Return the first sentence of a docstring in brackets, in lower case unless it begins with a name; empty for no text.

    Example:
        >>> in_brackets("Probabilistic PCA: a linear map with noise.")
        ' (probabilistic PCA: a linear map with noise)'
    """
    text = summary.rstrip(".")
    capital = text.startswith(PROPER_NAMES) or text[1:2].isupper()
    return f" ({text if capital else text[:1].lower() + text[1:]})" if text else ""


def method_name(source: Source) -> str:
    """Return the method's name in its usual spelling."""
    name = str(source.config["inference"]["name"])
    return METHODS.load(name).__name__ if name in METHODS else name


WITHOUT_DATA = (
    "The run has no data.nc, and its data set could not be loaded or has changed. Labels, raw values and true values of missing "
    "entries are therefore not shown."
)


def _notes(source: Source) -> list[Item]:
    notes = [str(note) for note in source.run.info.get("notes", [])]
    if source.raw is None:
        notes.append(WITHOUT_DATA)
    return [Text(tuple(notes), "list")] if notes else []


def _model(source: Source) -> list[Item]:
    section = dict(source.config["model"])
    name = section.pop("name")
    if source.model is None:
        text = f"The model “{name}” is from a plugin that is missing or was changed. Its description is not available."
        return [Text((text,)), *_hyperparameters(section, {})]
    described = docs(type(source.model))
    items: list[Item] = [Text((f"The model is {name}{in_brackets(described.summary)}.",))]
    if described.paragraphs:
        items.append(Formulas(described.paragraphs))
    if described.references:
        items.append(Text((described.references,), "reference"))
    return [*items, *_hyperparameters(source.model.hyperparameters(), described.arguments)]


def _hyperparameters(values: Mapping[str, Any], meanings: Mapping[str, str]) -> list[Item]:
    rows = [{"hyper-parameter": k, "value": v, "meaning": meanings.get(k, "")} for k, v in values.items()]
    return [Table.of("hyperparameters", "Hyper-parameters of the model", rows)] if rows else []


def _embeddings(source: Source) -> list[Item]:
    sections: Sequence[Mapping[str, Any]] = source.config.get("embeddings") or []
    if not sections:
        return [Text(("The configuration contains no embedding.",))]
    rows = []
    for one in sections:
        options = {k: v for k, v in one.items() if k not in ("name", "label", "n_latent", "seed", "impute") and v is not None}
        known = one["name"] in EMBEDDINGS
        rows.append(
            {
                "embedding": one.get("label") or one["name"],
                "description": docs(EMBEDDINGS.load(one["name"])).summary if known else one["name"],
                "options": ", ".join(f"{k} = {shown(v)}" for k, v in options.items()),
            }
        )
    return [Table.of("embeddings", "Embeddings and their options", rows)]


def _settings(config: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            rows += _settings(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for i, one in enumerate(value):
                rows += _settings(one, f"{prefix}{key}.{i}.")
        else:
            rows.append({"key": prefix + key, "value": "null" if value is None else value})
    return rows
