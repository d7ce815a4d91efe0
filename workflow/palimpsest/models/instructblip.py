"""InstructBLIP and BLIP-2 as the trainer asks a model: hidden states, which the head is put on.

transformers' own classes give nothing but the logits of every token.

Shapes: B examples, L tokens, D hidden size of the language model, Q query tokens of a picture.
"""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.blip_2.modeling_blip_2 import Blip2ForConditionalGeneration
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipForConditionalGeneration,
)


class _Reading:
    """A forward up to the language model's last hidden state; `generate` stays as it is."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False, **seen: Tensor
    ) -> BaseModelOutputWithPast:
        """Return h_BLD for input_ids_BL, in which a picture's query tokens have their places."""
        picture_BQD = self.get_image_features(**seen).pooler_output
        x_BLD = self.get_input_embeddings()(input_ids)
        places_BL1 = self.get_placeholder_mask(input_ids, x_BLD)
        x_BLD = x_BLD.masked_scatter(places_BL1, picture_BQD.to(x_BLD.dtype))
        return self.language_model.base_model(
            inputs_embeds=x_BLD, attention_mask=attention_mask, use_cache=use_cache
        )


class InstructBlip(_Reading, InstructBlipForConditionalGeneration):
    """The Q-Former reads the instruction: `qformer_input_ids` and `qformer_attention_mask`."""


class Blip2(_Reading, Blip2ForConditionalGeneration):
    """The Q-Former looks at the picture alone."""
