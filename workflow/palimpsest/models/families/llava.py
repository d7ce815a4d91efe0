"""LLaVA (Liu et al., arXiv 2310.03744), as transformers' LlavaForConditionalGeneration.

The demo model is of this family, with a small tower and decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

from palimpsest.config import Model
from palimpsest.data.example import Example
from palimpsest.models.llava_assembly import assemble as assemble  # found here by the family
from palimpsest.models.lmm import DTYPES, Conversing, Read, adjusted, opened, padded, source


def load(config: Model) -> Llava:
    """Load weights, tokenizer and image processor from a directory or a pinned hub revision."""
    where = source(config)
    module = LlavaForConditionalGeneration.from_pretrained(
        **where, dtype=DTYPES[config.precision], use_safetensors=True
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(**where)
    image_processor = CLIPImageProcessorPil.from_pretrained(**where)
    return Llava(config, module, tokenizer, adjusted(image_processor, config))


class Llava(Conversing):
    """A LLaVA and the way it reads conversations and pictures.

    The config's `pictures`: `pad` to a square of the mean colour (as LLaVA-1.5 is trained), or
    `squash` into one, or `crop` to the middle of the shorter side (as CLIP is trained).
    """

    def __init__(
        self,
        config: Model,
        module: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: CLIPImageProcessorPil,
    ) -> None:
        self.config, self.module = config, module
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.pad_id, self.end_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        # Every picture takes the same number of tokens; the text names them one by one.
        self.image_token = tokenizer.convert_ids_to_tokens(module.config.image_token_id)
        self.image_length = module.config.image_seq_length

    def _read(self, example: Example, text: str) -> Read:
        has_image = example.image is not None
        tokens = self.tokenizer(
            text.replace(self.image_token, self.image_token * self.image_length, has_image),
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        grown = len(self.image_token) * (self.image_length - 1) if has_image else 0
        pictures = self._pictures(example)
        return Read(tokens["input_ids"], tokens["offset_mapping"], grown, pictures)

    def _pictures(self, example: Example) -> dict[str, torch.Tensor]:
        if example.image is None:
            return {}
        picture = opened(example.image)
        if self.config.pictures == "pad":
            picture = padded(picture, self.image_processor.image_mean)
        return dict(self.image_processor(picture, return_tensors="pt", **self._fit()))

    def _fit(self) -> dict[str, Any]:
        """Return what the image processor does otherwise than its own settings say."""
        if self.config.pictures not in ("squash", "crop"):
            return {}
        side = self.module.config.vision_config.image_size
        square = {"height": side, "width": side}
        if self.config.pictures == "squash":
            return {"size": square, "do_center_crop": False}
        return {"size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
