"""LLaVA (Liu et al., arXiv 2310.03744), as transformers' LlavaForConditionalGeneration.

The demo model is of this family, with a small tower and decoder. `assemble` makes the model as it
is before its instruction tuning, of Vicuna, CLIP-L/336 and the projector of its stage 1: CoIN
starts there, as the tuned checkpoint has seen its tasks (zackschen/CoIN, issues 26 and 27).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlavaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

from palimpsest.config import Model
from palimpsest.data.example import Example
from palimpsest.models import assembly
from palimpsest.models.lmm import DTYPES, Conversing, Read, source
from palimpsest.models.pictures import adjusted, pixel_values, shown

IMAGE = "<image>"
VISION: assembly.Rules = (
    (r"vision_model\.embeddings\.position_ids", None),
    (r"vision_model\.(.*)", r"model.vision_tower.\1"),
    (r"text_model\..*|(text|visual)_projection\.weight|logit_scale", None),  # the rest of CLIP
)
PROJECTOR: assembly.Rules = (
    (r"model\.mm_projector\.0\.(weight|bias)", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(weight|bias)", r"model.multi_modal_projector.linear_2.\1"),
)


def load(config: Model) -> Llava:
    """Load weights, tokenizer and image processor from a directory or a pinned hub revision."""
    return load_as(LlavaForConditionalGeneration, config)


def load_as(kind: type[PreTrainedModel], config: Model) -> Llava:
    """Load a model of some class that reads as a LLaVA does."""
    where = source(config)
    module = kind.from_pretrained(**where, dtype=DTYPES[config.precision], use_safetensors=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(**where)
    image_processor = CLIPImageProcessorPil.from_pretrained(**where)
    return Llava(config, module, tokenizer, adjusted(image_processor, config))


def assemble(parts: dict[str, Path], out: Path) -> None:
    """Make a directory that LlavaForConditionalGeneration loads.

    Parts: `language_model` (a Llama of the hub with tokenizer.model), `vision` (a CLIP of the hub),
    `projector` (mm_projector.bin, a pickle of two linear layers). As in llava-hf's conversions the
    features are those of the last layer but one, without CLS; the vocabulary goes on with <image>
    and <pad>; and the embeddings have a multiple of 64 rows.

    Errors: ValueError names a part, file or tensor that is missing, foreign or of another shape.
    """
    language, vision = assembly.part(parts, "language_model"), assembly.part(parts, "vision")
    projector = assembly.part(parts, "projector") / "mm_projector.bin"
    tokenizer = assembly.llama_tokenizer(language, IMAGE)
    eyes = assembly.saved(CLIPVisionConfig, vision)
    text = assembly.llama_config(language, tokenizer)
    config = LlavaConfig(
        vision_config=eyes,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(eyes.image_size // eyes.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"):
        module = LlavaForConditionalGeneration(config)

    def tensors() -> assembly.Named:
        yield from assembly.llama(language, text.vocab_size)
        yield from assembly.renamed(assembly.tensors(vision), VISION, vision)
        loaded = assembly.unpickled(projector)
        yield from assembly.renamed(loaded.items(), PROJECTOR, projector)

    file = "preprocessor_config.json"
    image_processor = assembly.saved(CLIPImageProcessorPil, vision, file)
    assembly.write(tensors(), module, tokenizer, image_processor, out)


class Llava(Conversing):
    """A model that reads conversations and pictures as LLaVA does.

    The config's `pictures`: `pad` to a square of the mean colour (as LLaVA-1.5 is trained), or
    `squash` into one, or `crop` to the middle of the shorter side (as CLIP is trained).
    """

    def __init__(
        self,
        config: Model,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: CLIPImageProcessorPil,
    ) -> None:
        self.config, self.module = config, module
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.pad_id, self.end_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        # Every picture takes the same number of tokens; the text names them one by one.
        self.picture_id = module.config.image_token_id
        self.image_token = tokenizer.convert_ids_to_tokens(self.picture_id)
        self.image_length = module.config.image_seq_length
        self._last: tuple[Any, dict[str, torch.Tensor]] = (None, {})

    def _read(self, example: Example, text: str) -> Read:
        has_image = example.image is not None
        tokens = self.tokenizer(
            text.replace(self.image_token, self.image_token * self.image_length, has_image),
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        grown = len(self.image_token) * (self.image_length - 1) if has_image else 0
        pictures = self._pictures(example.image) if has_image else {}
        return Read(tokens["input_ids"], tokens["offset_mapping"], grown, pictures)

    def _pictures(self, image: bytes) -> dict[str, torch.Tensor]:
        """Return a picture as the model takes it; the one of the last call is not made anew."""
        asked, (last, pictures) = (image, self.config.pictures), self._last
        if asked != last:
            pictures = self._prepared(image)
            self._last = (asked, pictures)
        return pictures

    def _prepared(self, image: bytes) -> dict[str, torch.Tensor]:
        picture = shown(image, self.config, self.image_processor)
        return {"pixel_values": pixel_values(self.image_processor, picture, **self._fit())}

    def _fit(self) -> dict[str, Any]:
        """Return what the image processor does otherwise than its own settings say."""
        if self.config.pictures not in ("squash", "crop"):
            return {}
        side = self.module.config.vision_config.image_size
        square = {"height": side, "width": side}
        if self.config.pictures == "squash":
            return {"size": square, "do_center_crop": False}
        return {"size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
