"""MoELoRA: a dense mixture of LoRA experts, gated per token (CoIN, arXiv 2403.08350)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from palimpsest.files import write_json
from palimpsest.methods import adapter, narrow
from palimpsest.methods import settings as s


class MoELoRALinear(nn.Module):
    """A frozen linear layer and N experts: y = Wx + sum_i softmax(Gx)_i (alpha / r) B_i A_i x.

    Shapes: X any leading axes, D input, O output, N experts, R = r the total rank, of which an
    expert has E = r / N. Expert i has rows iE to (i + 1)E of A_RD and the same columns of B_OR, so
    that all experts are two matrix products, ((x A^T) * gate) B^T, and no expert's own output of
    size O is ever made. G_ND sees the token's own input, and every token weighs all experts.

    As in CoIN's released code A ~ N(0, 0.01^2), B = 0, G starts as an `nn.Linear` does, and
    dropout acts on the experts' input, not on the gate's. Unlike there, the experts share one draw
    of the dropout for each token: a draw for each would mean an input of its own for each expert.

    The adapters of a half-precision layer are in fp32: the input is cast to it, the output back.
    """

    def __init__(self, base_layer: nn.Linear, settings: s.MoELora) -> None:
        super().__init__()
        weight = base_layer.weight
        new = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}
        self.experts = settings.experts
        self.scale = settings.alpha / settings.rank
        self.dropout = settings.dropout
        self.base_layer = base_layer
        # Owned by this module, whose forward is called: so that ZeRO-3 gathers them for it.
        self.moelora_A = nn.Parameter(torch.empty(settings.rank, base_layer.in_features, **new))
        self.moelora_B = nn.Parameter(torch.zeros(base_layer.out_features, settings.rank, **new))
        self.moelora_G = nn.Parameter(torch.empty(settings.experts, base_layer.in_features, **new))
        nn.init.normal_(self.moelora_A, std=0.01)
        nn.init.kaiming_uniform_(self.moelora_G, a=math.sqrt(5))

    def gate(self, x_XD: Tensor) -> Tensor:
        """Return the weights of the experts for each token, gate_XN, which sum to one."""
        return narrow.product(x_XD, self.moelora_G).softmax(dim=-1)

    def forward(self, x_XD: Tensor) -> Tensor:
        """Return y_XO, in the base layer's precision."""
        y_XO = self.base_layer(x_XD)
        gate_XN = self.scale * self.gate(x_XD)
        z_XR = narrow.product(x_XD, self.moelora_A, self.dropout if self.training else 0.0)
        z_XNE = z_XR.unflatten(-1, (self.experts, -1)) * gate_XN.unsqueeze(-1)
        return (y_XO + F.linear(z_XNE.flatten(-2), self.moelora_B)).to(y_XO.dtype)


class MoELora(adapter.Adapter):
    """The targeted linear layers become `MoELoRALinear`; with its gates it cannot be merged."""

    mark = ".moelora_"
    weights = "moelora.safetensors"
    config = "moelora.json"
    mergeable = False

    def attach(self, model: nn.Module, targets: str) -> nn.Module:
        """See `Adapter.attach`."""
        names = adapter.target_layers(model, targets)
        model.requires_grad_(False)
        for name in names:
            layer = MoELoRALinear(model.get_submodule(name), self.settings)
            model.set_submodule(name, layer.train(model.training))
        return model

    def key(self, name: str) -> str:
        """Return the parameter's name in the model."""
        return name

    def save_config(self, directory: Path, model: nn.Module, base: str) -> None:
        """Write the settings and the base model's name to `moelora.json`."""
        config = {**self.identity(), "dropout": self.settings.dropout}
        write_json(directory / self.config, {**config, "base_model_name_or_path": base})

    def identity(self) -> dict[str, Any]:
        """See `Adapter.identity`."""
        return {"version": 1, **self.settings.model_dump(exclude={"dropout"})}
