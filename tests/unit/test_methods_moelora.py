"""MoELoRA against a plain loop over its experts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

import tiny
from palimpsest.methods import adapter
from palimpsest.methods.moelora import MoELoRALinear
from palimpsest.methods.settings import Lora
from palimpsest.methods.settings import MoELora as Settings


def settings_of(experts: int = 4, each: int = 2, dropout: float = 0.0) -> Settings:
    return Settings(
        name="moelora", rank=experts * each, alpha=7.0, experts=experts, dropout=dropout
    )


def trained_layer(
    settings: Settings, inputs: int, outputs: int, dtype: torch.dtype = torch.float64
) -> MoELoRALinear:
    """A layer with random weights everywhere, those that start at zero included."""
    torch.manual_seed(0)
    layer = MoELoRALinear(nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False), settings)
    for parameter in (layer.moelora_A, layer.moelora_B, layer.moelora_G):
        nn.init.normal_(parameter)
    return layer


def loop_of_experts(layer: MoELoRALinear, x_XD: Tensor, settings: Settings) -> Tensor:
    """The formula as it is written in the paper's code, one expert after the other."""
    each = settings.rank // settings.experts
    gate_XN = torch.softmax(x_XD @ layer.moelora_G.T, dim=-1)
    y_XO = layer.base_layer(x_XD)
    for i in range(settings.experts):
        A_ED = layer.moelora_A[i * each : (i + 1) * each]
        B_OE = layer.moelora_B[:, i * each : (i + 1) * each]
        y_XO = y_XO + gate_XN[..., i, None] * settings.alpha / settings.rank * (
            x_XD @ A_ED.T @ B_OE.T
        )
    return y_XO


@settings(deadline=None, max_examples=60)
@given(
    leading=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    experts=st.integers(2, 5),
    each=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_two_products_equal_a_loop_of_experts(leading, inputs, outputs, experts, each, seed):
    chosen = settings_of(experts, each)
    layer = trained_layer(chosen, inputs, outputs)
    generator = torch.Generator().manual_seed(seed)
    x_XD = torch.randn(*leading, inputs, dtype=torch.float64, generator=generator)
    x_XD.requires_grad_()
    weight_XO = torch.randn(*leading, outputs, dtype=torch.float64, generator=generator)

    ours, loop = layer(x_XD), loop_of_experts(layer, x_XD, chosen)
    torch.testing.assert_close(ours, loop, rtol=1e-12, atol=1e-12)
    wrt = [x_XD, layer.moelora_A, layer.moelora_B, layer.moelora_G]
    for a, b in zip(
        torch.autograd.grad((ours * weight_XO).sum(), wrt),
        torch.autograd.grad((loop * weight_XO).sum(), wrt),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gates_are_positive_and_sum_to_one():
    layer = trained_layer(settings_of(), 6, 5)
    gate_BLN = layer.gate(torch.randn(3, 7, 6, dtype=torch.float64))
    assert (gate_BLN > 0).all()
    assert gate_BLN.std() > 0.1
    torch.testing.assert_close(gate_BLN.sum(-1), torch.ones(3, 7, dtype=torch.float64))


def test_a_token_is_routed_by_itself():
    """Neither the other rows of a batch nor the other tokens of a row change a token's output."""
    layer = trained_layer(settings_of(), 6, 5)
    x_BLD = torch.randn(3, 7, 6, dtype=torch.float64)
    other_BLD = torch.randn_like(x_BLD)
    other_BLD[1, 4] = x_BLD[1, 4]
    y_BLO = layer(x_BLD)
    assert torch.equal(y_BLO[1, 4], layer(other_BLD)[1, 4])
    torch.testing.assert_close(y_BLO[1, 4], layer(x_BLD[1, 4]), rtol=1e-13, atol=1e-13)


def test_initial_values_are_those_of_the_released_code():
    torch.manual_seed(0)
    layer = MoELoRALinear(nn.Linear(400, 300), settings_of(8, 16))
    assert layer.moelora_A.std().item() == pytest.approx(0.01, rel=0.02)
    assert not layer.moelora_B.any()
    bound = 400**-0.5  # of nn.Linear: uniform between -1 and 1 over the root of the inputs
    assert layer.moelora_G.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert layer.moelora_G.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_dropout_acts_on_the_experts_in_training_alone():
    layer = trained_layer(settings_of(dropout=0.5), 6, 5)
    x_LD = torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(1)
    dropped, again = layer(x_LD), layer(x_LD)
    assert not torch.equal(dropped, again)
    layer.eval()
    expected = loop_of_experts(layer, x_LD, settings_of())
    torch.testing.assert_close(layer(x_LD), expected, rtol=1e-12, atol=1e-12)
    layer.train()
    mean = layer(x_LD.expand(20_000, 4, 6)).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.15)  # gates that see no dropout


def test_nothing_of_an_experts_output_is_kept_for_the_backward_pass():
    tokens, inputs, outputs = 100, 32, 48
    layer = trained_layer(settings_of(), inputs, outputs)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        layer(torch.randn(tokens, inputs, dtype=torch.float64, requires_grad=True))
    assert max(kept) == tokens * inputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_adapters_of_a_half_precision_layer_are_fp32(dtype):
    chosen = settings_of()
    layer = trained_layer(chosen, 16, 8, dtype)
    x_BLD = torch.randn(2, 3, 16).to(dtype)
    y_BLO = layer(x_BLD)
    y_BLO.float().sum().backward()
    assert y_BLO.dtype == dtype
    assert layer.moelora_A.grad.dtype == layer.moelora_G.grad.dtype == torch.float32
    exact = loop_of_experts(layer.double(), x_BLD.double(), chosen)
    worst = torch.finfo(dtype).eps * exact.abs().max()
    assert (y_BLO.double() - exact).abs().max() < 2 * worst


def test_parameters_are_those_of_lora_and_the_routers():
    ours, base = settings_of(experts=4, each=2), tiny.tiny_llava()
    layers = [base.get_submodule(name) for name in adapter.target_layers(base, tiny.TARGETS)]
    routers = sum(4 * layer.in_features for layer in layers)
    assert trainable(ours) == trainable(Lora(name="lora", rank=8, alpha=1)) + routers


def trainable(settings: Lora | Settings) -> int:
    model = adapter.build(settings).attach(tiny.tiny_llava(), tiny.TARGETS)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_rank_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValidationError, match="rank 6 cannot be shared out over 4 experts"):
        Settings(name="moelora", rank=6, alpha=1, experts=4)
