"""MiniGPT-v2 (Chen et al., arXiv 2310.09478): a LLaVA with EVA-CLIP-g, which joins its tokens.

The tower is the one that transformers has for BLIP-2, but without a norm at its end, as the
released code has it (and a norm of another epsilon before the projector).

Shapes: B pictures, P patches, C width of the tower, D hidden size of the language model.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaModel
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)

JOINED = 4  # tokens of the tower that become one of the language model


class MiniGPTv2Config(LlavaConfig):
    """The config of a LLaVA whose parts are of other kinds."""

    model_type = "minigpt_v2"
    sub_configs_defaults = {"vision_config": Blip2VisionConfig, "text_config": LlamaConfig}  # noqa: RUF012


class JoiningProjector(nn.Module):
    """Norm the tower's tokens, join four that follow each other in raster order, and project."""

    def __init__(self, config: MiniGPTv2Config) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(JOINED * width, config.text_config.hidden_size)

    def forward(self, x_BPC: Tensor) -> Tensor:
        """Return P / 4 tokens a picture, of size D."""
        x_BPC = self.norm(x_BPC)
        return self.linear(x_BPC.unflatten(1, (-1, JOINED)).flatten(2))


class MiniGPTv2Model(LlavaModel):
    """Tower, projector and language model without its head."""

    config_class = MiniGPTv2Config

    def __init__(self, config: MiniGPTv2Config) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = Blip2VisionModel(config.vision_config)
        self.vision_tower.post_layernorm = nn.Identity()
        self.multi_modal_projector = JoiningProjector(config)
        self.language_model = LlamaModel(config.text_config)
        self.post_init()


class MiniGPTv2ForConditionalGeneration(LlavaForConditionalGeneration):
    """The whole model, which trains and generates as a LLaVA does."""

    config_class = MiniGPTv2Config
    base_class: type[LlavaModel] = MiniGPTv2Model

    def __init__(self, config: MiniGPTv2Config) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = self.base_class(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()
