"""Tests of plots of chains."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from latentlab.report import chains


@pytest.fixture
def plotted_chains(monkeypatch, rng):
    """Draws `(chain, draw)` of the log density, and the data passed to ArviZ by name of the plot."""

    def of(n_chains, n_superchains):
        lp = rng.normal(size=(n_chains, 6))
        dims = ("chain", "draw")
        attrs = {"n_superchains": n_superchains} if n_superchains else {}
        tree = xr.DataTree.from_dict(
            {"/posterior": xr.Dataset({"mu": (dims, lp)}), "/sample_stats": xr.Dataset({"lp": (dims, lp)})}
        )
        tree.attrs.update(attrs)
        found = {}

        def kept(name, function, given, **texts):
            found[name] = (given["posterior"].to_dataset()["log density"].values, texts["caption"])

        monkeypatch.setattr(chains, "arviz_figure", kept)
        chains.chain_items(SimpleNamespace(tree=tree, model=None, group=lambda name: tree[name].to_dataset()))
        return lp, found

    return of


def test_many_chains_are_plotted_by_superchain(plotted_chains):
    """Traces show the first chain of each superchain, ranks all of its chains; adjacent chains form a superchain."""
    lp, found = plotted_chains(12, 4)
    values, caption = found["trace"]
    np.testing.assert_array_equal(values, lp[[0, 3, 6, 9]])
    assert "first chain of each of 4 superchains" in caption
    values, caption = found["rank"]
    np.testing.assert_array_equal(values, [lp[0:3].ravel(), lp[3:6].ravel(), lp[6:9].ravel(), lp[9:12].ravel()])
    assert "superchain (3 of the 12 chains each)" in caption


@pytest.mark.parametrize("n_superchains", [None, 1, 4])
def test_ungrouped_chains_are_plotted_one_by_one(plotted_chains, n_superchains):
    lp, found = plotted_chains(4, n_superchains)
    for name in ("trace", "rank"):
        np.testing.assert_array_equal(found[name][0], lp)
        assert "superchain" not in found[name][1]


@pytest.mark.parametrize(("n_chains", "n_lines"), [(4, 6), (64, 2)])
def test_the_legend_of_many_chains_is_shortened(n_chains, n_lines, monkeypatch, rng):
    energy = xr.Dataset({"energy": (("chain", "draw"), rng.normal(size=(n_chains, 20)))})
    tree = xr.DataTree.from_dict({"/posterior": xr.Dataset(coords={"chain": range(n_chains)}), "/sample_stats": energy})
    found = []
    monkeypatch.setattr(chains, "svg", lambda canvas, *args: found.append(canvas.axes[0].get_legend()) or "")
    chains.arviz_figure("energy", "plot_energy", tree, caption="", alt="")
    assert len(found[0].get_texts()) == n_lines


@pytest.mark.parametrize(("n_superchains", "noun"), [(1, "chain"), (2, "superchain")])
def test_the_axes_of_all_panels_are_labelled(n_superchains, noun, monkeypatch, rng):
    stats = xr.Dataset({name: (("chain", "draw"), rng.normal(size=(4, 30))) for name in ("lp", "energy")})
    posterior = xr.Dataset({"mu": (("chain", "draw"), rng.normal(size=(4, 30)))})
    tree = xr.DataTree.from_dict(
        {"/": xr.Dataset(attrs={"n_superchains": n_superchains}), "posterior": posterior, "sample_stats": stats}
    )
    labels = {}

    def kept(canvas, name, alt):
        panels = [axes for axes in canvas.axes if axes.axison and axes.has_data()]
        labels[name] = {(axes.get_xlabel(), axes.get_ylabel()) for axes in panels}
        return ""

    monkeypatch.setattr(chains, "svg", kept)
    chains.chain_items(SimpleNamespace(tree=tree, model=None, group=lambda name: tree[name].to_dataset()))
    assert set(labels) == {"trace", "rank", "energy"}
    assert all(all(pair) for pairs in labels.values() for pair in pairs), labels
    assert ("draw", "value") in labels["trace"] or ("Steps", "value") in labels["trace"]
    assert {y for _, y in labels["rank"]} & {"chain", "superchain"} <= {noun}
