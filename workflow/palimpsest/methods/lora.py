"""LoRA by PEFT, in PEFT's own format: y = Wx + (alpha / rank) B A x (arXiv 2106.09685)."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.functional import cast_adapter_dtype
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from palimpsest.methods import adapter, narrow

_NAME = "default"  # PEFT's name of an only adapter; it stands in parameter names, not in files


class _A(nn.Linear):
    """PEFT's A, but for what it keeps for the way back. ZeRO-3 gathers it when it is called."""

    def forward(self, x_XD: Tensor, dropout: float) -> Tensor:
        """Return z_XR."""
        return narrow.product(x_XD, self.weight, dropout)


class _Linear(Linear):
    """PEFT's layer; but its scale is put to A x, which is as wide as the rank.

    PEFT has the whole output times it, in the forward and in the backward pass. Where the scale is
    a power of two, the numbers are the same to the last bit.
    """

    def update_layer(self, *arguments: Any, **settings: Any) -> None:
        """See PEFT's. Its A stays as it was drawn."""
        super().update_layer(*arguments, **settings)
        self.lora_A[_NAME].__class__ = _A

    def forward(self, x_XD: Tensor) -> Tensor:
        """Return y_XO, in the base layer's precision."""
        if self.disable_adapters or self.merged:
            return super().forward(x_XD)
        y_XO = self.base_layer(x_XD)
        dropout = getattr(self.lora_dropout[_NAME], "p", 0.0) if self.training else 0.0
        z_XR = self.lora_A[_NAME](x_XD, dropout)
        return (y_XO + self.lora_B[_NAME](self.scaling[_NAME] * z_XR)).to(y_XO.dtype)


class Lora(adapter.Adapter):
    """Rank-limited updates, put into the model in place: its class and methods stay its own.

    The directory is one that `peft.PeftModel.from_pretrained(base_model, directory)` loads.
    """

    mark = ".lora_"
    weights = "adapter_model.safetensors"
    config = "adapter_config.json"
    mergeable = True

    def attach(self, model: nn.Module, targets: str) -> nn.Module:
        """See `Adapter.attach`; the adapters of a bf16 model are in fp32."""
        adapter.target_layers(model, targets)
        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            lora_dropout=self.settings.dropout,
            target_modules=targets,
        )
        config._register_custom_module({nn.Linear: _Linear})
        model = inject_adapter_in_model(config, model, _NAME)
        cast_adapter_dtype(model, _NAME)  # to fp32, as `get_peft_model` does and injection does not
        return model.train(model.training)  # PEFT's dropout is in training mode in any model

    def merge(self, model: nn.Module) -> None:
        """See `Adapter.merge`; exact up to one rounding to the base weights' precision."""
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                model.set_submodule(name, module.get_base_layer())
        del model.peft_config

    def key(self, name: str) -> str:
        """Return PEFT's name: as in a `PeftModel` around the model, without the adapter's name."""
        return "base_model.model." + name.replace(f".{_NAME}.weight", ".weight")

    def save_config(self, directory: Path, model: nn.Module, base: str) -> None:
        """Write `adapter_config.json` as `PeftModel.save_pretrained` does."""
        config = copy(model.peft_config[_NAME])
        config.base_model_name_or_path = base
        config.inference_mode = True
        auto_mapping = {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        }
        config.save_pretrained(str(directory), auto_mapping_dict=auto_mapping)

    def identity(self) -> dict[str, Any]:
        """See `Adapter.identity`."""
        return {
            "peft_type": "LORA",
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "use_rslora": False,
        }
