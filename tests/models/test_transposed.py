"""Transposed convolutions against torch's."""

import pytest
import torch

from latentlab.models.architectures import transposed
from latentlab.models.architectures.transposed import TransposedConvolution

CASES = [
    ((5, 4, 2, 3), 3, (3, 2, 1, 1)),
    ((1, 2, 5, 4), 1, (3, 2, 1, 0)),
    ((3, 1, 3, 3), 2, (5, 3, 2, (2, 1))),
    ((2, 3, 4, 1), 4, (1, 2, 0, 1)),
    ((2, 2, 3, 3), 2, (3, 1, 1, 0)),
    ((2, 2, 2, 2), 1, (3, 4, 1, 3)),
]
"""Shape of the images; channels of the output; size of the kernel, stride, padding, and padding of the output."""


@pytest.mark.parametrize(("shape", "n_out", "options"), CASES)
def test_images_and_derivatives_are_those_of_torch(shape, n_out, options):
    own = TransposedConvolution(shape[1], n_out, *options).double()
    theirs = torch.nn.ConvTranspose2d(shape[1], n_out, *options).double()
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, expected = own(x), theirs(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    along = torch.randn(expected.shape, dtype=torch.float64)
    slopes = [
        torch.autograd.grad((out * along).sum(), [x, *layer.parameters()]) for out, layer in ((found, own), (expected, theirs))
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_large_images_are_left_to_torch(monkeypatch):
    layer, x, used = TransposedConvolution(2, 3, 3, 2, 1, 1), torch.randn(4, 2, 2, 2), []
    convolve = torch.nn.ConvTranspose2d.forward
    monkeypatch.setattr(torch.nn.ConvTranspose2d, "forward", lambda self, x, size: used.append(1) or convolve(self, x, size))
    small = layer(x)
    monkeypatch.setattr(transposed, "LEAST_UNITS", 3)
    monkeypatch.setattr(transposed, "MOST_PRODUCTS", 3 * 2 * 2 * 9 * 3)
    torch.testing.assert_close(layer(x), small, rtol=1e-5, atol=1e-6)  # blocks of three and one
    assert not used
    monkeypatch.setattr(transposed, "MOST_PRODUCTS", 3 * 2 * 2 * 9 * 3 - 1)
    torch.testing.assert_close(layer(x), small, rtol=1e-5, atol=1e-6)
    assert used
