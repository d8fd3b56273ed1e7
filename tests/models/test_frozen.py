"""Tests of frozen models of labelled units."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from latentlab.errors import DataError
from latentlab.fit import fit
from latentlab.inference.joint import log_joint
from latentlab.inference.svi import SVI
from latentlab.models.vae import VAE

MODULES = {"encoder": nn.Linear(4 + 3, 4), "decoder": nn.Linear(2 + 3, 4)}


@pytest.mark.parametrize("networks", [{}, MODULES], ids=["layers", "modules"])
def test_fewer_classes_than_those_of_the_fit_keep_their_columns(networks, iris):
    model = VAE(2, hidden=(3,), conditional=True, **networks)
    frozen = fit(model, iris, SVI(guide="model", n_steps=2, n_particles=1, n_draws=5), progress=False).frozen()
    chosen = [60, 61, 140, 141]  # two species of three

    def level(units):
        return log_joint(frozen, iris.subset(units), {"z": np.ones((len(units), 2))})

    assert level(chosen) == pytest.approx(level([0, *chosen]) + level([1, *chosen]) - level([0, 1, *chosen]), rel=1e-12)
    assert level(chosen) == pytest.approx(sum(level([unit]) for unit in chosen), rel=1e-12)
    assert model.classes is None
    unseen = replace(iris.subset(chosen), labels=np.array(["another", *iris.labels[chosen[1:]]]))
    with pytest.raises(DataError, match=r"the label of unit 60 must be a label of the fit, setosa.*; got 'another'"):
        log_joint(frozen, unseen, {"z": np.ones((4, 2))})
