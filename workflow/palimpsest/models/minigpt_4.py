"""MiniGPT-4 (Zhu et al., arXiv 2304.10592): a LLaVA with EVA-CLIP-g and BLIP-2's Q-Former.

The form with Vicuna has the Q-Former; the one with Llama-2 joins four tokens that follow each
other, as MiniGPT-v2 does. The norm at the tower's end is that of the released code, of another
epsilon than transformers' BLIP-2 has there; [CLS] is behind it too.

Shapes: B pictures, P tokens of the tower with [CLS] first, C its width, Q queries, D hidden size
of the language model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionModel,
    LlamaModel,
    PreTrainedConfig,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel, LlavaPreTrainedModel

from palimpsest.models.minigpt_v2 import (
    JoiningProjector,
    MiniGPTv2Config,
    MiniGPTv2ForConditionalGeneration,
)


class MiniGPT4Config(MiniGPTv2Config):
    """The config of a MiniGPT-v2 that may have a Q-Former."""

    model_type = "minigpt_4"
    sub_configs_defaults = {  # noqa: RUF012
        **MiniGPTv2Config.sub_configs_defaults,
        "qformer_config": SubConfigSpec(config_class=Blip2QFormerConfig, optional=True),
    }
    qformer_config: dict | PreTrainedConfig | None = None


class QueryingProjector(nn.Module):
    """Have the queries of a Q-Former look at the tower's tokens, and project what they found."""

    def __init__(self, config: MiniGPT4Config) -> None:
        super().__init__()
        width = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.image_seq_length, width))
        self.qformer = Blip2QFormerModel(config.qformer_config)
        self.linear = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, x_BPC: Tensor) -> Tensor:
        """Return Q tokens a picture, of size D."""
        queries = self.query_tokens.expand(len(x_BPC), -1, -1)
        found = self.qformer(queries, encoder_hidden_states=x_BPC).last_hidden_state
        return self.linear(found)


class PatchJoiningProjector(JoiningProjector):
    """MiniGPT-v2's, behind the norm, which leaves out [CLS]."""

    def __init__(self, config: MiniGPT4Config) -> None:
        super().__init__(config)
        self.norm = nn.Identity()

    def forward(self, x_BPC: Tensor) -> Tensor:
        """Return (P - 1) / 4 tokens a picture, of size D."""
        return super().forward(x_BPC[:, 1:])


class MiniGPT4Model(LlavaModel):
    """Tower, projector and language model without its head."""

    config_class = MiniGPT4Config

    def __init__(self, config: MiniGPT4Config) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        projector = PatchJoiningProjector if config.qformer_config is None else QueryingProjector
        self.vision_tower = Blip2VisionModel(config.vision_config)
        self.vision_tower.post_layernorm = nn.LayerNorm(config.vision_config.hidden_size)
        self.multi_modal_projector = projector(config)
        self.language_model = LlamaModel(config.text_config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return as `pooler_output` each picture's tokens for the language model."""
        seen = self.vision_tower(pixel_values)
        seen.pooler_output = list(self.multi_modal_projector(seen.last_hidden_state))
        return seen


class MiniGPT4ForConditionalGeneration(MiniGPTv2ForConditionalGeneration):
    """The whole model, which trains and generates as a LLaVA does."""

    config_class = MiniGPT4Config
    base_class = MiniGPT4Model
