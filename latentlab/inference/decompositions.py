"""Decompositions that fail inside a captured graph: NaN, where the program itself would raise.

`torch.linalg.cholesky` and its like are captured as the decomposition, a code `info` for each matrix of the batch, and a check
that raises if a code is not 0. TorchScript drops the check, since nothing depends on it: a matrix that has no decomposition would
go on as numbers without a meaning, and the density be finite where there is none.
"""

from typing import Any

import torch


def failures_as_nan(captured: Any) -> Any:
    """The graph (of `make_fx`) in which what comes from a matrix without a decomposition is NaN, and nothing raises.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = failures_as_nan(make_fx(torch.linalg.cholesky)(torch.eye(2).repeat(2, 1, 1)))
        >>> graph(torch.stack([4 * torch.eye(2), -torch.eye(2)]))[:, 0, 0]
        tensor([2., nan])
    """
    graph = captured.graph
    for check in [node for node in graph.nodes if node.target is torch.ops.aten._linalg_check_errors.default]:
        info = check.args[0]
        for result in [node for node in info.args[0].users if node is not info]:
            value = result.meta["val"]
            if not value.is_floating_point() or not result.users:
                continue
            with graph.inserting_after(max(result, info)):
                masked = graph.call_function(_masked, (result, info, value.dim()))
            result.replace_all_uses_with(masked, delete_user_cb=lambda user, own=masked: user is not own)
        graph.erase_node(check)
    captured.recompile()
    return captured


def _masked(result: torch.Tensor, info: torch.Tensor, n_dims: int) -> torch.Tensor:
    """NaN in place of the results whose code is not 0."""
    return torch.where((info != 0)[(..., *[None] * (n_dims - info.dim()))], torch.nan, result)
