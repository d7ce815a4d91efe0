"""LLaVA-1.5 before its instruction tuning: Vicuna, CLIP-L/336 and the projector of its stage 1.

CoIN starts here, as the tuned checkpoint has seen its tasks (zackschen/CoIN, issues 26 and 27).
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlavaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

from palimpsest.models import assembly

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
