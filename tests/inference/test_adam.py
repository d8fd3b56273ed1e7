"""Tests of Adam as a function of vectors, against torch."""

import itertools

import numpy as np
import pytest
import torch

from latentlab.errors import InferenceError
from latentlab.inference import adam as module
from latentlab.inference.adam import Adam, Descent, pack, unpack, update_in_blocks, update_of, whole_step

SHAPES = [torch.Size([3]), torch.Size([2, 2])]


def loss(parameters, target):
    """Quadratic in one of the parameters, and not in the other; `target` is a batch."""
    a, b = parameters
    return ((a - target) ** 2).sum() + (b**4).sum()


@pytest.mark.parametrize("rates", [(1.0, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_steps_match_torchs_adam(rates):
    """With equal gradients and schedule, 200 steps agree to rounding."""
    start = [torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64) + 0.5]
    adam = Adam(n_steps=200, learning_rate=0.05, patience=None, title="", progress=False)
    step = whole_step(lambda vectors, target: loss(unpack(vectors[0], SHAPES), target)[None], SHAPES, rates)
    target = torch.tensor(0.7, dtype=torch.float64)
    (end,), (losses,) = adam.descend(pack(start)[None], step, itertools.repeat((target,)), [0], lambda *_: [])
    leaves = [p.clone().requires_grad_() for p in start]
    groups = [{"params": [p], "lr": 0.05 * rate} for p, rate in zip(leaves, rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, adam.rate)
    expected = []
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(leaves, target)
        value.backward()
        expected.append(value.item())
        optimizer.step()
        decay.step()
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    for found, leaf in zip(unpack(end, SHAPES), leaves, strict=True):
        np.testing.assert_allclose(found, leaf.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rates", [(1.0, 1.0), (1.0, 0.3)])
def test_updates_in_blocks_are_the_same_to_the_bit(rates, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    vectors, m, v, slopes = torch.randn(4, 2, 7, dtype=torch.float64)
    arguments = vectors, m, v**2, torch.tensor([0.1, 1.3], dtype=torch.float64), slopes
    for found, expected in zip(update_in_blocks(SHAPES, rates)(*arguments), update_of(SHAPES, rates)(*arguments), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_fit_with_a_non_finite_loss_is_named(where):
    """An overflowing sum of finite gradients is no failure."""

    def step(vectors, m, v, scale):
        losses, slope = torch.ones(2), torch.full((2, 3), 1e308, dtype=torch.float64)
        if len(seen) == 4:
            (losses[1:] if where == "loss" else slope[1]).fill_(torch.nan)
        seen.append(1)
        return losses, slope.sum(1), vectors, slope, v

    seen = []
    adam = Adam(n_steps=9, learning_rate=0.1, patience=None, title="", progress=False)
    with pytest.raises(InferenceError, match=r"restart 7, step 4: .* not finite: site of 1; last losses"):
        adam.descend(torch.zeros(2, 3), step, itertools.repeat(()), [3, 7], lambda k, _: [f"site of {k}"])


def test_log_lines_are_written_during_the_descent():
    """Lines are written at tenths of all steps and are kept when the fit is interrupted."""
    lines, steps = [], itertools.count(1)

    def step(vectors, m, v, scale):
        if next(steps) == 36:
            raise KeyboardInterrupt
        return torch.tensor([2.0, -1.0]), torch.zeros(2), vectors, m, v

    adam = Adam(75, 0.1, None, "", progress=False, log=lines.append, before=25, total=100)
    with pytest.raises(KeyboardInterrupt):
        adam.descend(torch.zeros(2, 3), step, itertools.repeat(()), [0, 4], lambda *_: [])
    expected = [(number, n, elbo) for n in (30, 40, 50, 60) for number, elbo in ((0, -2.0), (4, 1.0))]
    assert lines == [f"restart {number}, step {n} of 100: elbo {elbo:.2f}" for number, n, elbo in expected]


def test_stopped_fits_do_not_change_while_others_continue():
    """The first fit stalls and is kept, also in a snapshot; the second continues."""
    kept = []
    n_done = itertools.count()

    def step(vectors, m, v, scale):
        return torch.tensor([1.0, -float(next(n_done))]), torch.zeros(2), vectors + 1, m, v

    adam = Adam(300, 0.1, 50, "", progress=False)
    arguments = (torch.zeros(2, 3), step, itertools.repeat(()), [0, 1], lambda *_: [])
    ends, losses = adam.descend(*arguments, save=lambda now: kept.append(now) if now.n_done == 170 else None)
    assert [len(one) for one in losses] == [100, 300]
    assert ends[:, 0].tolist() == [100.0, 300.0]
    n_done = itertools.count(170)
    again = Descent.from_arrays(kept[0].arrays(), 300)
    ends_again, losses_again = adam.descend(*arguments, resumed=again)
    assert torch.equal(ends, ends_again)
    for one, other in zip(losses, losses_again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_learning_rate_decays_to_a_hundredth_in_the_second_half():
    adam = Adam(n_steps=100, learning_rate=0.5, patience=None, title="", progress=False)
    assert [adam.rate(step) for step in (0, 49, 50, 75, 100)] == pytest.approx([1, 1, 1, 0.1, 0.01])
    first, second = adam.scale(75).tolist()
    assert first == pytest.approx(0.05 / (1 - 0.9**76))
    assert second == pytest.approx((1 - 0.999**76) ** -0.5)
