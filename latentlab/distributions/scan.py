r"""Products of many elements in a graph of log depth, for any associative product.

An element is a tuple of tensors with a leading axis over the n factors. The product of neighbours halves their number, so that
the total product takes log n rounds. One further step per round gives the products $v E_1 \cdots E_t$ for every t.

References:
    Blelloch (1990), Prefix sums and their applications, CMU-CS-90-190.
"""

from collections.abc import Callable

import torch

Elements = tuple[torch.Tensor, ...]
Product = Callable[[Elements, Elements], Elements]
"""Function from two batches of elements, earlier and later, to the batch of their products."""


def product(compose: Product, elements: Elements) -> Elements:
    """Compute $E_1 \\cdots E_n$, with a leading axis of length 1."""
    while len(elements[0]) > 1:
        pairs = compose(_every(elements, slice(None, -1, 2)), _every(elements, slice(1, None, 2)))
        odd_one = _every(elements, slice(len(elements[0]) // 2 * 2, None))
        elements = tuple(torch.cat(both) for both in zip(pairs, odd_one, strict=True)) if len(odd_one[0]) else pairs
    return elements


def scan(compose: Product, apply: Product, elements: Elements, before: Elements) -> Elements:
    """Compute $v E_1 \\cdots E_t$ for every t = 1 ... n.

    Args:
        compose: Function for products of elements.
        apply: Function for products of batches of v with elements.
        elements: Elements E, with n along the leading axis; n may be 0.
        before: Start v, without a leading axis.
    """
    first = tuple(v[None] for v in before)
    n = len(elements[0])
    if n == 0:
        return _every(first, slice(0))
    if n == 1:
        return apply(first, elements)
    pairs = compose(_every(elements, slice(None, -1, 2)), _every(elements, slice(1, None, 2)))
    odd = scan(compose, apply, pairs, before)
    earlier = tuple(torch.cat(both)[: (n + 1) // 2] for both in zip(first, odd, strict=True))
    even = apply(earlier, _every(elements, slice(None, None, 2)))
    return tuple(_interleaved(*both) for both in zip(even, odd, strict=True))


def _every(elements: Elements, which: slice) -> Elements:
    return tuple(element[which] for element in elements)


def _interleaved(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """Interleave the rows 0, 2, 4, ... and 1, 3, 5, ..."""
    both = torch.stack([even[: len(odd)], odd], dim=1).flatten(0, 1)
    return torch.cat([both, even[len(odd) :]])
