"""The products that take an adapter's input to its few ranks or gates, and what they keep of it.

In a bf16 model such an input is cast to fp32, and autograd would keep the copy for the way back,
with dropout another, for every adapted layer apart. Kept here is the input as the model has it,
which the layers that read the same hidden states share; the copy is made anew on the way back. The
numbers are the same to the last bit.

Shapes: X any leading axes, D input, R output.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def product(x_XD: Tensor, W_RD: Tensor, dropout: float = 0.0) -> Tensor:
    """Return W d(x) in W's precision, z_XR; d is dropout with that probability."""
    if x_XD.dtype == W_RD.dtype and not dropout:
        return F.linear(x_XD, W_RD)  # no copy is made that could be kept; this is a little faster
    return _Product.apply(x_XD, W_RD, dropout)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_XD: Tensor, W_RD: Tensor, dropout: float) -> Tensor:
        """Return z_XR; keep x, and of dropout a byte a number."""
        read_XD, kept_XD = x_XD.to(W_RD.dtype), None
        if dropout:
            read_XD, kept_XD = torch.native_dropout(read_XD, dropout, True)
        ctx.save_for_backward(x_XD, W_RD, kept_XD)
        ctx.dropout = dropout
        return F.linear(read_XD, W_RD)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dz_XR: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients dx_XD and dW_RD, of what is trained."""
        x_XD, W_RD, kept_XD = ctx.saved_tensors

        def dropped(wide_XD: Tensor) -> Tensor:
            if kept_XD is None:
                return wide_XD
            return torch.ops.aten.native_dropout_backward(wide_XD, kept_XD, 1 / (1 - ctx.dropout))

        dx_XD = dW_RD = None
        if ctx.needs_input_grad[0]:
            dx_XD = dropped(dz_XR @ W_RD).to(x_XD.dtype)
        if ctx.needs_input_grad[1]:
            read_XD = dropped(x_XD.to(W_RD.dtype))
            dW_RD = dz_XR.flatten(0, -2).T @ read_XD.flatten(0, -2)
        return dx_XD, dW_RD, None
