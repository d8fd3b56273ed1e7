import pytest
import torch

from latentlab.distributions.scan import product, scan


def compose(first, then):
    return (first[0] @ then[0],)


@pytest.mark.parametrize("n", range(1, 18))
def test_scan_equals_sequential_products(n):
    generator = torch.Generator().manual_seed(n)
    factors = torch.randn(n, 3, 3, dtype=torch.float64, generator=generator)
    before = torch.randn(1, 3, dtype=torch.float64, generator=generator)
    state, whole, expected = before, torch.eye(3, dtype=torch.float64), []
    for factor in factors:
        state, whole = state @ factor, whole @ factor
        expected.append(state)
    torch.testing.assert_close(scan(compose, compose, (factors,), (before,))[0], torch.stack(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(product(compose, (factors,))[0], whole[None], rtol=1e-12, atol=1e-12)


def test_scan_of_an_empty_sequence_is_empty():
    found = scan(compose, compose, (torch.zeros(0, 3, 3),), (torch.ones(1, 3),))[0]
    assert found.shape == (0, 1, 3)
