"""Parts of an autoencoder: active dimensions, reconstructions of units, and walks through the decoder."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latentlab.errors import LatentLabError
from latentlab.inference.arrays import parameter_tensors, tensors
from latentlab.inference.encoder import ACTIVE, activity
from latentlab.models.base import LatentModel
from latentlab.report.figure import BLUE, COLORS, GREY, ORANGE, drawn, panels, shortened
from latentlab.report.items import Figure, Item, Table, Text, count, listed, shown
from latentlab.report.source import Source
from latentlab.results.tree import arrays
from latentlab.seeds import double

N_EACH = 5
"""Largest number of best, and of worst, reconstructed units that are shown."""
N_DRAWS = 50
STEPS = np.linspace(-2, 2, 7)
"""Steps of a walk, in standard deviations."""
MOST_WALKS = 4
PIXEL = re.compile(r"pixel_(\d+)_(\d+)")


def parts(source: Source) -> list[Item]:
    """Return active dimensions, reconstructions and walks; empty if the model has no parameters or is not available."""
    model = source.model
    if model is None or not model.parameters or not arrays(source.tree, "parameters"):
        return []
    try:
        machine = _Machine(source, model)
    except LatentLabError as error:
        return [Text((f"Encoder and decoder are not shown: {error}",))]
    return [*_activity(machine), _reconstructions(machine), _walks(machine)]


class _Machine:
    """Encoder and decoder of a fit, in the model's own axes."""

    def __init__(self, source: Source, model: LatentModel) -> None:
        self.source, self.model = source, model
        self.parameters = parameter_tensors(arrays(source.tree, "parameters"))
        self.given = tensors(model, source.fitted)
        self.table = activity(model, self.given, self.parameters)
        z = arrays(source.tree, "posterior")[source.site].reshape(-1, len(source.units), len(self.table))
        self.mean, self.sd = z.mean(axis=0), z.std(axis=0)
        some = z[np.unique(np.linspace(0, len(z) - 1, min(len(z), N_DRAWS)).astype(int))]
        decoded = np.stack([self.decode(one) for one in some])
        self.x = source.observed.values
        self.decoded, self.spread = decoded.mean(axis=0), decoded.std(axis=0)
        self.error = np.sqrt(np.nanmean((self.decoded - self.x) ** 2, axis=1))
        self.loc, self.scale = self._raw_scale()
        self.pixels = _grid(source.features)

    def decode(self, z: np.ndarray, unit: int | None = None) -> np.ndarray:
        """Compute means of the data given positions `(unit, latent)`; labels are those of all units, or of one unit for all."""
        at = torch.from_numpy(np.ascontiguousarray(z))
        given: Mapping[str, Any] = self.given
        if unit is not None and given.get("labels") is not None:
            given = {**given, "labels": given["labels"][unit].expand(len(z), -1)}
        with torch.no_grad(), double():
            if "imputation" in self.model.offers:
                return np.asarray(self.model.imputation(given, z=at, **self.parameters).mean.numpy())
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


def _activity(machine: _Machine) -> list[Item]:
    table = machine.table
    active = int(table["active"].sum())
    dead = [str(k + 1) for k in table.loc[~table["active"], "dimension"]]
    said = f"{active} of {count(len(table), 'latent dimension')} {'is' if active == 1 else 'are'} active."
    kind = "plain"
    if dead:
        said += f" {'Dimension' if len(dead) == 1 else 'Dimensions'} {listed(dead)} stayed at the prior (posterior collapse)."
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
        "Latent dimensions in the axes of the encoder. Activity is the variance of the encoder's mean over units. A dimension is active "
        f"above {ACTIVE:g}"
    )
    return [Text((said,), kind), Table.of("active-dimensions", caption, records)]


def _chosen(machine: _Machine) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the best and of the worst reconstructed units."""
    order = np.argsort(machine.error, kind="stable")
    n = min(N_EACH, max(1, len(order) // 2))
    return order[:n], order[::-1][:n]


def _reconstructions(machine: _Machine) -> Figure:
    best, worst = _chosen(machine)
    units = [*best.tolist(), *worst.tolist()]
    names = [f"{shortened(machine.source.units[i])} ({shown(float(machine.error[i]))})" for i in units]
    rows = {
        "data": machine.raw(machine.x),
        "decoded": machine.raw(machine.decoded),
        "spread": machine.spread * machine.scale,
    }

    pixels = np.empty((0, 2), dtype=int) if machine.pixels is None else machine.pixels

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
        place = np.arange(len(machine.source.features))
        for axes, i, name in zip(panels(canvas, len(units), N_EACH, sharey=True), units, names, strict=True):
            middle, sd = machine.decoded[i], machine.spread[i]
            axes.fill_between(place, middle - 2 * sd, middle + 2 * sd, color=BLUE, alpha=0.2, lw=0)
            axes.plot(place, middle, color=BLUE, lw=1.2)
            axes.plot(place, machine.x[i], "o", color=ORANGE, ms=3)
            axes.set_title(name, fontsize=8)
            axes.set_xlabel("feature")
            axes.grid(axis="y")

    what = (
        "The rows are the data, the mean of the decoded posterior draws, and their standard deviation."
        if machine.pixels is not None
        else ("Dots are the data. Lines and bands are the mean of the decoded posterior draws and two standard deviations.")
    )
    caption = (
        f"Reconstructions of the {len(best)} units with the smallest and the {len(worst)} with the largest error. {what} The root mean "
        "square error is in brackets, in the scale of the fit."
    )
    height = 4.0 if machine.pixels is not None else 2.2 * -(-len(units) // N_EACH) + 0.4
    return drawn(
        "reconstructions",
        caption,
        f"Reconstructions of {len(units)} units.",
        (10, height),
        images if machine.pixels is not None else profiles,
    )


def _walks(machine: _Machine) -> Figure:
    unit = int(np.argsort(machine.error, kind="stable")[len(machine.error) // 2])
    order = np.argsort(-machine.table["activity"].to_numpy(), kind="stable")[: min(MOST_WALKS, len(machine.table))]
    walks: list[tuple[str, np.ndarray]] = []
    for k in order.tolist():
        for what, points in (
            ("posterior", machine.mean[unit, k] + STEPS * machine.sd[unit, k]),
            ("prior", STEPS),
        ):
            z = np.repeat(machine.mean[unit][None], len(STEPS), axis=0)
            z[:, k] = points
            walks.append((f"axis {k + 1}, {what} sd", machine.decode(z, unit)))

    pixels = np.empty((0, 2), dtype=int) if machine.pixels is None else machine.pixels

    def images(canvas: Any) -> None:
        axes = canvas.subplots(len(walks), len(STEPS), squeeze=False)
        values = [machine.raw(found) for _, found in walks]
        limits = {"vmin": min(v.min() for v in values), "vmax": max(v.max() for v in values)}
        for row, (name, _), found in zip(axes, walks, values, strict=True):
            for one, x in zip(row, found, strict=True):
                one.imshow(_image(x, pixels), cmap="gray_r", **limits)
                one.set_xticks([])
                one.set_yticks([])
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for one, step in zip(axes[0], STEPS, strict=True):
            one.set_title(f"{step:+.1f} sd", fontsize=8)

    def profiles(canvas: Any) -> None:
        place = np.arange(len(machine.source.features))
        for axes, (name, found) in zip(panels(canvas, len(walks), 2, sharey=True), walks, strict=True):
            for j, x in enumerate(found):
                middle = j == len(STEPS) // 2
                color = GREY if middle else COLORS[0] if j < len(STEPS) // 2 else COLORS[3]
                axes.plot(place, x, color=color, lw=1.0, alpha=1.0 if middle else 0.3 + 0.2 * abs(STEPS[j]))
            axes.set_title(name)
            axes.set_xlabel("feature")
            axes.grid(axis="y")

    caption = (
        f"Decoded positions along the most active axes, through the posterior mean of the typical unit {machine.source.units[unit]}. The range "
        "of two posterior standard deviations shows the uncertainty of the unit. The range of two prior standard deviations shows the "
        "meaning of the axis."
    )
    caption += "" if machine.pixels is not None else " Blue lines are below the mean, and red lines are above it."
    height = 0.75 * len(walks) + 0.4 if machine.pixels is not None else 2.0 * -(-len(walks) // 2) + 0.3
    return drawn(
        "walks",
        caption,
        f"Decoded walks along {len(order)} axes.",
        (10, height),
        images if machine.pixels is not None else profiles,
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
