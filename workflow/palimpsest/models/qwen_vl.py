"""Qwen-VL (Bai et al., arXiv 2308.12966) on transformers' parts.

A vision transformer, a resampler that makes of a picture's patches a fixed number of features, and
a language model. Modules have the names of the released checkpoint (hub: Qwen/Qwen-VL-Chat), so
that its tensors, and adapters that others have trained on it, fit as they are.

Shapes: B examples, L tokens, N pictures, P patches, Q features of a picture, W width of the vision
transformer, D hidden size, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils import can_return_tuple

NORM_EPS = 1e-6  # of the vision transformer and the resampler
TABLE = 256  # rows of the vision transformer's position table, a square whatever the picture's size
HEAD_WIDTH = 128  # of the resampler


class QwenVLVisionConfig(PreTrainedConfig):
    """The `visual` section of the released config.json, under its own names."""

    model_type = "palimpsest_qwen_vl_vision"
    base_config_key = "vision_config"

    image_size: int = 448
    patch_size: int = 14
    width: int = 1664
    layers: int = 48
    heads: int = 16
    mlp_ratio: float = 4.9231
    output_dim: int = 4096
    n_queries: int = 256
    image_start_id: int = 151857


class QwenVLConfig(PreTrainedConfig):
    """A language model in Llama's terms, and a vision transformer with its resampler.

    `text_config.max_position_embeddings` is the released `seq_length`.
    """

    model_type = "palimpsest_qwen_vl"
    sub_configs = {"text_config": LlamaConfig, "vision_config": QwenVLVisionConfig}  # noqa: RUF012

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, kind in self.sub_configs.items():
            value = getattr(self, name) or {}
            setattr(self, name, kind(**value) if isinstance(value, dict) else value)
        super().__post_init__(**kwargs)

    @classmethod
    def from_released(cls, released: dict[str, Any]) -> QwenVLConfig:
        """Return the config that a released config.json describes; KeyError if a key is missing."""
        text = LlamaConfig(
            vocab_size=released["vocab_size"],
            hidden_size=released["hidden_size"],
            intermediate_size=released["intermediate_size"] // 2,  # theirs counts w1 and w2
            num_hidden_layers=released["num_hidden_layers"],
            num_attention_heads=released["num_attention_heads"],
            rms_norm_eps=released["layer_norm_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": released["rotary_emb_base"]},
            max_position_embeddings=released["seq_length"],
            bos_token_id=None,
            eos_token_id=None,
        )
        return cls(text_config=text, vision_config=QwenVLVisionConfig(**released["visual"]))

    @property
    def image_token_id(self) -> int:
        """The id of `<imgpad>`, which follows those of `<img>` and `</img>`."""
        return self.vision_config.image_start_id + 2

    @property
    def image_seq_length(self) -> int:
        """The number of features, and of tokens, of one picture."""
        return self.vision_config.n_queries


class VisionAttention(nn.Module):
    """Self-attention whose input projection gives each head its query, key and value in a row."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.in_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x_NPW: Tensor) -> Tensor:
        """Return what each patch attends to, y_NPW."""
        heads = self.in_proj(x_NPW).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y_NHPC = F.scaled_dot_product_attention(*heads.chunk(3, dim=-1))
        return self.out_proj(y_NHPC.transpose(1, 2).flatten(-2))


class VisionBlock(nn.Module):
    """Attention and a GELU layer, each after a norm and beside a residual path."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        inner = int(config.width * config.mlp_ratio)
        self.ln_1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = VisionAttention(config)
        self.ln_2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        layers = {
            "c_fc": nn.Linear(config.width, inner),
            "gelu": nn.GELU(),
            "c_proj": nn.Linear(inner, config.width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x_NPW: Tensor) -> Tensor:
        """Return the patches of the next layer."""
        x_NPW = x_NPW + self.attn(self.ln_1(x_NPW))
        return x_NPW + self.mlp(self.ln_2(x_NPW))


class Resampler(nn.Module):
    """Cross-attention from learned queries to the patches.

    `pos_embed` is a fixed table of sines that the checkpoint brings: one row a query. The queries
    use it as it is; the patches' keys, but not their values, use it resampled to their grid.
    """

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        width, heads = config.output_dim, config.output_dim // HEAD_WIDTH
        self.register_buffer("pos_embed", torch.zeros(config.n_queries, width))
        self.query = nn.Parameter(torch.zeros(config.n_queries, width))
        self.kv_proj = nn.Linear(config.width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x_NPW: Tensor) -> Tensor:
        """Return y_NQD."""
        x_NPD = self.ln_kv(self.kv_proj(x_NPW))
        query_QD = self.ln_q(self.query) + self.pos_embed
        key_NPD = x_NPD + resampled(self.pos_embed, x_NPD.shape[1])
        query_NQD = query_QD.expand(len(x_NPD), -1, -1)
        return self.attn(query_NQD, key_NPD, x_NPD, need_weights=False)[0]


class VisionTransformer(nn.Module):
    """Pictures to features that stand in a text as its tokens do."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(TABLE, width))
        self.ln_pre = nn.LayerNorm(width, eps=NORM_EPS)
        blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(config.output_dim, eps=NORM_EPS)
        self.proj = nn.Parameter(torch.zeros(config.output_dim, config.output_dim))

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        """Return the features of each picture, y_NQD."""
        x_NPW = self.conv1(pixels_N3HW.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x_NPW = self.ln_pre(x_NPW + resampled(self.positional_embedding, x_NPW.shape[1]))
        for block in self.transformer["resblocks"]:
            x_NPW = block(x_NPW)
        return self.ln_post(self.attn_pool(x_NPW)) @ self.proj


def resampled(table_SX: Tensor, size: int) -> Tensor:
    """Return a square table of positions for a square grid of another size, bicubically."""
    if len(table_SX) == size:
        return table_SX
    old, new = math.isqrt(len(table_SX)), math.isqrt(size)
    square_1Xhw = table_SX.float().T.unflatten(1, (old, old)).unsqueeze(0)
    square_1Xhw = F.interpolate(square_1Xhw, size=(new, new), mode="bicubic", align_corners=False)
    return square_1Xhw[0].flatten(1).T.to(table_SX.dtype)


class Attention(nn.Module):
    """Causal self-attention; one layer gives query, key and value, with a bias."""

    is_causal = True
    num_key_value_groups = 1  # transformers' attention functions ask for it

    def __init__(self, config: QwenVLConfig, layer: int) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.config, self.layer = config, layer
        self.heads = config.text_config.num_attention_heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x_BLD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """Return what each token attends to, y_BLD."""
        q_BHLC, k_BHLC, v_BHLC = (
            part_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part_BLD in self.c_attn(x_BLD).chunk(3, dim=-1)
        )
        q_BHLC, k_BHLC = apply_rotary_pos_emb(q_BHLC, k_BHLC, *rotary)
        if cache is not None:
            k_BHLC, v_BHLC = cache.update(k_BHLC, v_BHLC, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        y_BLHC, _ = attend(self, q_BHLC, k_BHLC, v_BHLC, mask, scaling=q_BHLC.shape[-1] ** -0.5)
        return self.c_proj(y_BLHC.flatten(-2))


class MLP(nn.Module):
    """c_proj(w1 x * silu(w2 x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return y_BLD."""
        return self.c_proj(self.w1(x_BLD) * F.silu(self.w2(x_BLD)))


class Block(nn.Module):
    """A layer of the language model."""

    def __init__(self, config: QwenVLConfig, layer: int) -> None:
        super().__init__()
        text = config.text_config
        self.ln_1 = LlamaRMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = LlamaRMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.mlp = MLP(text)

    def forward(self, x_BLD: Tensor, *context: Any) -> Tensor:
        """Return the tokens of the next layer; `context` is what attention takes besides."""
        x_BLD = x_BLD + self.attn(self.ln_1(x_BLD), *context)
        return x_BLD + self.mlp(self.ln_2(x_BLD))


class QwenVLPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of a model."""

    config: QwenVLConfig
    config_class = QwenVLConfig
    base_model_prefix = "transformer"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class QwenVLModel(QwenVLPreTrainedModel):
    """Tokens and pictures to hidden states.

    A token's position is its number among those that the attention mask shows. The released code
    ignores `position_ids` and counts padding on the left too. Rotary positions act by their
    differences alone, so that both compute the same; but here a token's angles, and how they round
    in bf16, do not depend on the other texts of its batch.

    Past the length that the model was trained with (`seq_length`) the released code rescales
    positions and queries (dynamic NTK, logn attention), in evaluation alone, and the positions not
    the same with a cache as without. That is not built here: longer input is an error.
    """

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.wte = nn.Embedding(text.vocab_size, text.hidden_size)
        self.rotary_emb = LlamaRotaryEmbedding(text)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(text.num_hidden_layers))
        self.ln_f = LlamaRMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.visual = VisionTransformer(config.vision_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer from token ids to vectors."""
        return self.wte

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
    ) -> BaseModelOutputWithPast:
        """Return h_BLD of input_ids_BL; pixel_values_N3HW are in the order of their `<img>`.

        attention_mask_BT covers the T tokens of the cache and the input, all if not given.

        Errors: ValueError if T is more than `seq_length`, or if there are other than N pictures.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if attention_mask is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        self._check_length(attention_mask.shape[1])
        x_BLD = self.wte(input_ids)
        if pixel_values is not None:
            x_BLD = self._with_pictures(x_BLD, input_ids, pixel_values)
        position_BT = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        rotary = self.rotary_emb(x_BLD, position_BT[:, -input_ids.shape[1] :])
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BLD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        for block in self.h:
            x_BLD = block(x_BLD, rotary, mask, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_f(x_BLD), past_key_values=past_key_values
        )

    def _with_pictures(self, x_BLD: Tensor, input_ids: Tensor, pixels_N3HW: Tensor) -> Tensor:
        """Put pictures where tokens stand strictly between `<img>` and `</img>`."""
        start_id = self.config.vision_config.image_start_id
        starts_BL, ends_BL = input_ids == start_id, input_ids == start_id + 1
        inside_BL = (starts_BL.cumsum(-1) > ends_BL.cumsum(-1)) & ~starts_BL
        features_NQD = self.visual(pixels_N3HW)
        if (found := int(inside_BL.sum())) != features_NQD.shape[:2].numel():
            raise ValueError(
                f"{found} tokens stand between <img> and </img>, but {len(pixels_N3HW)} pictures "
                f"take {self.config.image_seq_length} each: is a text cut off inside a picture?"
            )
        return x_BLD.masked_scatter(inside_BL.unsqueeze(-1), features_NQD.to(x_BLD.dtype))

    def _check_length(self, length: int) -> None:
        limit = self.config.text_config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"{length} tokens, the answer's included, are more than the {limit} that this "
                "Qwen-VL was trained with (seq_length); past them it would need logn attention and "
                "dynamic NTK, which are not built here: shorten the text"
            )


class QwenVLForConditionalGeneration(QwenVLPreTrainedModel, GenerationMixin):
    """Qwen-VL with its output layer: `generate` takes left-padded batches and their pictures."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.transformer = QwenVLModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer from hidden states to the vocabulary."""
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Return logits_BLV, of the last `logits_to_keep` tokens if given; see `QwenVLModel`."""
        output = self.transformer(
            input_ids, attention_mask, pixel_values, past_key_values, use_cache
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)
