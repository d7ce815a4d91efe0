"""LLaVA (Liu et al., arXiv 2310.03744), as transformers' LlavaForConditionalGeneration.

The demo model is of this family, with a small tower and decoder.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

from palimpsest.config import Model
from palimpsest.data.example import Example
from palimpsest.files import sha256
from palimpsest.models.lmm import IGNORE, LMM, Encoded, conversation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(config: Model) -> Llava:
    """Load weights, tokenizer and image processor from a directory or a pinned hub revision."""
    if not config.revision and not (Path(config.weights) / "config.json").is_file():
        raise ValueError(
            f"{config.weights}: no model here (config.json is missing). Give the directory of a "
            "saved model as `weights`, or a hub id together with a `revision`"
        )
    weights = Path(config.weights) / "model.safetensors"
    if config.sha256 and sha256(weights) != config.sha256:
        raise ValueError(
            f"{weights}: is not the file whose sha256 the model's config gives; other weights are "
            "another model: give it a name and a config of its own"
        )
    source = {"pretrained_model_name_or_path": config.weights, "revision": config.revision}
    module = LlavaForConditionalGeneration.from_pretrained(
        **source, dtype=DTYPES[config.precision], use_safetensors=True
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(**source)
    return Llava(config, module, tokenizer, CLIPImageProcessorPil.from_pretrained(**source))


class Llava(LMM):
    """A LLaVA and the way it reads conversations and pictures."""

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

    def encode(self, example: Example) -> Encoded:
        """Encode a whole conversation, cut off at the model's maximal length."""
        text, spans = conversation(example, self.config.chat)
        return self._encoded(example, text, spans)

    def encode_prompt(self, example: Example) -> Encoded:
        """Encode the conversation up to its last answer."""
        text, spans = conversation(example, self.config.chat)
        return self._encoded(example, text[: spans[-1][0]], [])

    def decode(self, token_ids: list[int]) -> str:
        """Return generated tokens as text."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True).strip()

    def _encoded(self, example: Example, text: str, spans: list[tuple[int, int]]) -> Encoded:
        has_image = example.image is not None
        shift = len(self.image_token) * (self.image_length - 1) if has_image else 0
        tokens = self.tokenizer(
            text.replace(self.image_token, self.image_token * self.image_length, has_image),
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        learnt = [(start + shift, end + shift) for start, end in spans]
        labels = [
            token if any(start < last <= end for start, end in learnt) else IGNORE
            for token, (_, last) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        ]
        limit = self.config.max_length
        return Encoded(tokens["input_ids"][:limit], labels[:limit], self._pictures(example))

    def _pictures(self, example: Example) -> dict[str, torch.Tensor]:
        if example.image is None:
            return {}
        picture = Image.open(BytesIO(example.image)).convert("RGB")
        return dict(self.image_processor(picture, return_tensors="pt"))
