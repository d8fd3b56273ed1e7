r"""Transposed convolutions of small images by one matrix product.

Each pixel of the input adds a kernel-sized patch to the output, at steps of the stride s. A row $s a + r$ of the output has the
rows i of the patches with $i \equiv r + p$ modulo s, p the padding. The patches of all pixels are one matrix product. The $s^2$
planes of the output's rows and columns with the same remainders are sums of shifted patches.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

MOST_PRODUCTS = 2**18
"""Number of entries of all patches of a block of units; for larger images torch's convolution is used."""
LEAST_UNITS = 32
"""Smallest block of units."""


class TransposedConvolution(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with square kernels, with a faster forward pass for small images on the CPU."""

    def __init__(  # the arguments of torch's layer in the same order
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        output_padding: int | tuple[int, int],
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding)

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Compute the images `(unit, channel, row, column)`; results are those of torch to rounding."""
        size = x.shape[2] * x.shape[3] * self.kernel_size[0] ** 2 * self.out_channels
        if x.device.type != "cpu" or size * min(len(x), LEAST_UNITS) > MOST_PRODUCTS:
            return super().forward(x, output_size)
        return torch.cat([self._by_product(block) for block in x.split(MOST_PRODUCTS // size)])

    def _by_product(self, x: torch.Tensor) -> torch.Tensor:
        k, n_out = self.kernel_size[0], self.out_channels
        bias: Any = self.bias
        rows, columns = x.shape[2:]
        weight = self.weight.movedim(1, -1).reshape(self.in_channels, -1)
        products = x.movedim(1, -1).reshape(-1, self.in_channels) @ weight
        patches = products.view(-1, rows, columns, k * k, n_out).unbind(3)
        s, p = self.stride[0], int(self.padding[0])
        high, wide = ((n - 1) * s - 2 * p + k + self.output_padding[i] for i, n in enumerate((rows, columns)))
        n_rows, n_columns = -(-high // s), -(-wide // s)

        def shifted(patch: torch.Tensor, down: int, right: int) -> torch.Tensor:
            return pad(patch, (0, 0, right, n_columns - right - columns, down, n_rows - down - rows))

        planes = []
        for r in range(s):
            for c in range(s):
                places = [(i, j) for i in range(k) for j in range(k) if (i - r - p) % s == (j - c - p) % s == 0]
                terms = [shifted(patches[i * k + j], (i - r - p) // s, (j - c - p) // s) for i, j in places]
                planes.append(sum(terms, bias.expand(len(x), n_rows, n_columns, n_out)))
        images = torch.stack(planes, 3).view(-1, n_rows, n_columns, s, s, n_out).permute(0, 5, 1, 3, 2, 4)
        return images.reshape(-1, n_out, n_rows * s, n_columns * s)[:, :, :high, :wide]
