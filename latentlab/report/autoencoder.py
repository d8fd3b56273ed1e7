"""Autoencoders: active dimensions, reconstructions of units, and latent traversals of the decoder."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from latentlab.data.memory import by_quantity
from latentlab.errors import LatentLabError
from latentlab.inference.arrays import parameter_tensors
from latentlab.inference.encoder import ACTIVE, activity
from latentlab.models.base import LatentModel
from latentlab.report.figure import BLUE, COLORS, GREY, ORANGE, draw_figure, panels, shortened
from latentlab.report.items import Figure, Item, Table, Text, count, listed, shown
from latentlab.report.source import Source
from latentlab.results.new_points import tensors_of_fit
from latentlab.results.tree import arrays, parameters_of
from latentlab.seeds import double

N_EACH = 5
"""Largest number of best, and of worst, reconstructed units that are shown."""
N_DRAWS = 50
STEPS = np.linspace(-2, 2, 7)
"""Steps of a latent traversal, in standard deviations."""
MOST_TRAVERSED = 4
"""Largest number of latent axes that are traversed."""
PIXEL = re.compile(r"pixel_(\d+)_(\d+)")


def autoencoder_items(source: Source) -> list[Item]:
    """Return active dimensions, reconstructions and latent traversals; empty if the model has no encoder or decoder, or is not available."""
    model = source.model
    if model is None or "n_active" not in source.tree.attrs:
        return []
    if "imputation" not in model.offers and not {"W", "mu"} <= set(parameters_of(source.tree)):
        return []
    try:
        if source.n_categories is not None:
            text = "The data are codes of categories. Reconstructions and latent traversals, which show means, are left out."
            parameters = parameter_tensors(parameters_of(source.tree))
            return [*_activity(activity(model, tensors_of_fit(model, source.fitted, source.tree), parameters)), Text((text,))]
        fitted = _Autoencoder(source, model)
    except LatentLabError as error:
        return [Text((f"The encoder and the decoder are not shown: {error}",))]
    return [*_activity(fitted.table), _reconstructions(fitted), _traversals(fitted)]


class _Autoencoder:
    """Encoder and decoder of a fit, in the model's own axes."""

    def __init__(self, source: Source, model: LatentModel) -> None:
        self.source = source
        self.parameters = parameter_tensors(parameters_of(source.tree))
        self.model = model = model.with_parameters(self.parameters)
        self.arguments = tensors_of_fit(model, source.fitted, source.tree)
        self.table = activity(model, self.arguments, self.parameters)
        z = arrays(source.tree, "posterior")[source.site].reshape(-1, len(source.units), len(self.table))
        moments = by_quantity(lambda part: np.stack([part.mean(axis=0), part.std(axis=0)]), z.reshape(len(z), -1))
        self.mean, self.sd = moments.reshape(2, *z.shape[1:])
        thinned_draws = z[np.unique(np.linspace(0, len(z) - 1, min(len(z), N_DRAWS)).astype(int))]
        decoded = np.stack([self.decode(one) for one in thinned_draws])
        self.x = source.observed.values
        self.decoded, self.spread = decoded.mean(axis=0), decoded.std(axis=0)
        self.error = np.sqrt(np.nanmean((self.decoded - self.x) ** 2, axis=1))
        self.loc, self.scale = self._raw_scale()
        self.pixels = _grid(source.features)

    def decode(self, z: np.ndarray, unit: int | None = None) -> np.ndarray:
        """Compute means of the data given positions `(unit, latent)`; for a traversal, all rows have the label of `unit`."""
        at = torch.from_numpy(np.ascontiguousarray(z))
        arguments: Mapping[str, Any] = self.arguments
        if unit is not None and arguments.get("labels") is not None:
            arguments = {**arguments, "labels": arguments["labels"][unit].expand(len(z), -1)}
        with torch.no_grad(), double():
            if "imputation" in self.model.offers:
                return np.asarray(self.model.imputation(arguments, z=at, **self.parameters).mean.numpy())
            return np.asarray((at @ self.parameters["W"].mT + self.parameters["mu"]).numpy())

    def raw(self, x: np.ndarray) -> np.ndarray:
        """Convert standardised values to raw values."""
        return x * self.scale + self.loc

    def _raw_scale(self) -> tuple[np.ndarray, np.ndarray]:
        raw, x = self.source.raw, self.x
        if raw is None or not set(self.source.features) <= set(raw.features.astype(str)):
            return np.zeros(x.shape[1]), np.ones(x.shape[1])
        names = raw.features.astype(str).tolist()
        values = np.where(np.isnan(x), np.nan, raw.x[:, [names.index(feature) for feature in self.source.features]])
        spread = np.nanstd(x, axis=0)
        scale = np.where(spread > 0, np.nanstd(values, axis=0) / np.where(spread > 0, spread, 1.0), 1.0)
        return np.nanmean(values, axis=0) - scale * np.nanmean(x, axis=0), scale


def _activity(table: pd.DataFrame) -> list[Item]:
    active = int(table["active"].sum())
    inactive = [str(k + 1) for k in table.loc[~table["active"], "dimension"]]
    text = f"{active} of {count(len(table), 'latent dimension')} {'is' if active == 1 else 'are'} active."
    kind = "plain"
    if inactive:
        text += f" In {'dimension' if len(inactive) == 1 else 'dimensions'} {listed(inactive)}, the posterior equals the prior (posterior collapse)."
        kind = "caution"
    records = [
        {
            "dimension": int(row["dimension"]) + 1,
            "activity": float(row["activity"]),
            "KL from the prior, nats per unit": float(row["kl"]),
            "active": "yes" if row["active"] else "no",
        }
        for row in table.to_dict("records")
    ]
    caption = (
        "Latent dimensions of the encoder. Activity is the variance of the encoder's mean over units. A dimension is active "
        f"if its activity exceeds {ACTIVE:g}"
    )
    return [Text((text,), kind), Table.of("active-dimensions", caption, records)]


def _chosen(fitted: _Autoencoder) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the best and of the worst reconstructed units."""
    order = np.argsort(fitted.error, kind="stable")
    n = min(N_EACH, max(1, len(order) // 2))
    return order[:n], order[::-1][:n]


def _reconstructions(fitted: _Autoencoder) -> Figure:
    best, worst = _chosen(fitted)
    units = [*best.tolist(), *worst.tolist()]
    names = [f"{shortened(fitted.source.units[i])} ({shown(float(fitted.error[i]))})" for i in units]
    rows = {
        "data": fitted.raw(fitted.x),
        "decoded": fitted.raw(fitted.decoded),
        "spread": fitted.spread * fitted.scale,
    }

    pixels = np.empty((0, 2), dtype=int) if fitted.pixels is None else fitted.pixels

    def images(canvas: Any) -> None:
        axes = canvas.subplots(3, len(units), squeeze=False)
        low, high = np.nanmin(rows["data"][units]), np.nanmax(rows["data"][units])
        for j, i in enumerate(units):
            for k, (title, values) in enumerate(rows.items()):
                limits = {"vmin": low, "vmax": high} if title != "spread" else {"vmin": 0.0, "vmax": rows["spread"][units].max()}
                axes[k, j].imshow(_image(values[i], pixels), cmap="gray_r" if k < 2 else "magma", **limits)
                axes[k, j].set_xticks([])
                axes[k, j].set_yticks([])
                if j == 0:
                    axes[k, j].set_ylabel(title)
            axes[0, j].set_title(names[j], fontsize=7)

    def profiles(canvas: Any) -> None:
        index = np.arange(len(fitted.source.features))
        for axes, i, name in zip(panels(canvas, len(units), N_EACH, sharey=True), units, names, strict=True):
            middle, sd = fitted.decoded[i], fitted.spread[i]
            axes.fill_between(index, middle - 2 * sd, middle + 2 * sd, color=BLUE, alpha=0.2, lw=0)
            axes.plot(index, middle, color=BLUE, lw=1.2)
            axes.plot(index, fitted.x[i], "o", color=ORANGE, ms=3)
            axes.set_title(name, fontsize=8)
            axes.set_xlabel("index of the feature")
            axes.grid(axis="y")
        canvas.supylabel("value in the scale of the fit", fontsize=9)

    marks = (
        "The rows are the data, the mean of the decoded posterior draws, and their standard deviation."
        if fitted.pixels is not None
        else (
            "Dots are the data. Lines are the mean of the decoded posterior draws, and bands are two standard deviations on either side."
        )
    )
    caption = (
        f"Reconstructions of the {len(best)} units with the smallest and the {len(worst)} with the largest root mean square error. {marks} "
        "The error is in brackets, in the scale of the fit."
    )
    height = 4.0 if fitted.pixels is not None else 2.2 * -(-len(units) // N_EACH) + 0.4
    return draw_figure(
        "reconstructions",
        caption,
        f"Reconstructions of {len(units)} units.",
        (10, height),
        images if fitted.pixels is not None else profiles,
    )


def _traversals(fitted: _Autoencoder) -> Figure:
    unit = int(np.argsort(fitted.error, kind="stable")[len(fitted.error) // 2])
    order = np.argsort(-fitted.table["activity"].to_numpy(), kind="stable")[: min(MOST_TRAVERSED, len(fitted.table))]
    traversals: list[tuple[str, np.ndarray]] = []
    for k in order.tolist():
        for distribution, points in (
            ("posterior", fitted.mean[unit, k] + STEPS * fitted.sd[unit, k]),
            ("prior", STEPS),
        ):
            z = np.repeat(fitted.mean[unit][None], len(STEPS), axis=0)
            z[:, k] = points
            traversals.append((f"axis {k + 1}, {distribution} sd", fitted.decode(z, unit)))

    pixels = np.empty((0, 2), dtype=int) if fitted.pixels is None else fitted.pixels

    def images(canvas: Any) -> None:
        axes = canvas.subplots(len(traversals), len(STEPS), squeeze=False)
        values = [fitted.raw(decoded) for _, decoded in traversals]
        limits = {"vmin": min(v.min() for v in values), "vmax": max(v.max() for v in values)}
        for row, (name, _), images_of_row in zip(axes, traversals, values, strict=True):
            for cell, x in zip(row, images_of_row, strict=True):
                cell.imshow(_image(x, pixels), cmap="gray_r", **limits)
                cell.set_xticks([])
                cell.set_yticks([])
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for cell, step in zip(axes[0], STEPS, strict=True):
            cell.set_title(f"{step:+.1f} sd", fontsize=8)

    def profiles(canvas: Any) -> None:
        index = np.arange(len(fitted.source.features))
        for axes, (name, decoded) in zip(panels(canvas, len(traversals), 2, sharey=True), traversals, strict=True):
            for j, x in enumerate(decoded):
                middle = j == len(STEPS) // 2
                color = GREY if middle else COLORS[0] if j < len(STEPS) // 2 else COLORS[3]
                axes.plot(index, x, color=color, lw=1.0, alpha=1.0 if middle else 0.3 + 0.2 * abs(STEPS[j]))
            axes.set_title(name)
            axes.set_xlabel("index of the feature")
            axes.grid(axis="y")
        canvas.supylabel("decoded value in the scale of the fit", fontsize=9)

    caption = (
        "Latent traversals: decoded positions along the most active axes, through the posterior mean of unit "
        f"{fitted.source.units[unit]}, whose reconstruction error is the median. A traversal covers two posterior standard deviations on "
        "either side (uncertainty of the unit), or the positions from -2 to 2, two standard deviations of a standard normal prior (meaning of the axis)."
    )
    caption += "" if fitted.pixels is not None else " Blue lines are below the mean, and red lines are above it."
    height = 0.75 * len(traversals) + 0.4 if fitted.pixels is not None else 2.0 * -(-len(traversals) // 2) + 0.3
    return draw_figure(
        "traversals",
        caption,
        f"Latent traversals along {len(order)} axes.",
        (10, height),
        images if fitted.pixels is not None else profiles,
    )


def _grid(features: list[str]) -> np.ndarray | None:
    """Return row and column of each feature, `(feature, 2)`; None if not all are pixels."""
    found = [PIXEL.fullmatch(feature) for feature in features]
    if not found or any(match is None for match in found):
        return None
    return np.array([[int(part) for part in match.groups()] for match in found if match is not None])


def _image(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Arrange values of features as an image; pixels without a feature are blank."""
    image = np.full(pixels.max(axis=0) + 1, np.nan)
    image[pixels[:, 0], pixels[:, 1]] = values
    return image
