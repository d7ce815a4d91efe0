"""An adapter's first product: the numbers are autograd's, and less is kept for the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.methods import narrow

INPUT, RANK = 24, 3


def by_autograd(x_XD: Tensor, W_RD: Tensor, dropout: float) -> Tensor:
    return F.linear(F.dropout(x_XD.to(W_RD.dtype), dropout), W_RD)


def inputs_of(dtype: torch.dtype, *leading: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x_XD = torch.randn(*leading, INPUT).to(dtype).requires_grad_()
    return x_XD, torch.randn(RANK, INPUT, requires_grad=True), torch.randn(*leading, RANK)


@pytest.mark.parametrize("leading", [(5,), (2, 5), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_autograd_to_the_last_bit(dtype, dropout, leading):
    x_XD, W_RD, weight_XR = inputs_of(dtype, *leading)
    found = []
    for product in (narrow.product, by_autograd):
        torch.manual_seed(1)
        z_XR = product(x_XD, W_RD, dropout)
        found.append([z_XR, *torch.autograd.grad((z_XR * weight_XR).sum(), [x_XD, W_RD])])
    assert found[0][0].dtype == torch.float32
    assert found[0][1].dtype == dtype
    assert all(t.any() for t in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def kept(product, x_XD: Tensor, W_RD: Tensor, dropout: float) -> dict[int, int]:
    """Return the bytes of each storage that is kept for the way back, besides W's."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        z_XR = product(x_XD, W_RD, dropout)
    assert z_XR.requires_grad
    del storages[W_RD.untyped_storage().data_ptr()]
    return storages


@pytest.mark.parametrize(("dropout", "a_number"), [(0.0, 2), (0.5, 2 + 1)])
def test_the_input_is_kept_as_the_model_has_it_and_of_dropout_a_byte(dropout, a_number):
    x_XD, W_RD, _ = inputs_of(torch.bfloat16, 7)
    ours = kept(narrow.product, x_XD, W_RD, dropout)
    assert ours[x_XD.untyped_storage().data_ptr()] == 2 * 7 * INPUT
    assert sum(ours.values()) == a_number * 7 * INPUT
    assert sum(kept(by_autograd, x_XD, W_RD, dropout).values()) >= 4 * 7 * INPUT


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen):
    inputs = inputs_of(torch.float32, 4)[:2]
    inputs[frozen].requires_grad_(False)
    narrow.product(*inputs, 0.5).sum().backward()
    assert inputs[frozen].grad is None
    assert inputs[1 - frozen].grad.any()
