"""InstructBLIP (Dai et al., arXiv 2305.06500), and BLIP-2 (Li et al., arXiv 2301.12597).

A picture is looked at by a Q-Former, whose few query tokens come before all text; InstructBLIP's
reads the instruction as well, by a tokenizer of its own. `assemble` also makes what He et al.
(arXiv 2311.16206) call pre-trained: InstructBLIP with the Q-Former and projection of BLIP-2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, InstructBlipConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipForConditionalGeneration,
)

from palimpsest.config import Model
from palimpsest.data.example import Example
from palimpsest.models import assembly
from palimpsest.models.instructblip import Blip2, InstructBlip
from palimpsest.models.lmm import DTYPES, Conversing, Read, ending, source
from palimpsest.models.pictures import adjusted, pixel_values, shown

KINDS = {"instructblip": InstructBlip, "blip-2": Blip2}
QFORMER_TOKENIZER = "qformer_tokenizer"  # its folder
RELEASED: assembly.Rules = (
    (r".*\.(position_ids|rotary_emb\.inv_freq)", None),  # computed, but stored by old versions
    (r"(.*)", r"\1"),
)
# As transformers' conversion renames LAVIS's tensors. `ln_vision` learnt with the Q-Former there,
# and He et al. load it too.
BLIP2: assembly.Rules = (
    (r"Qformer\.bert\.embeddings\.position_ids", None),
    (r"Qformer\.cls\..*", None),  # the head of stage 1
    (r"query_tokens", "query_tokens"),
    (r"Qformer\.bert\.embeddings\.LayerNorm\.(.*)", r"qformer.embeddings.layernorm.\1"),
    (r"Qformer\.bert\.(.*attention)\.self\.(.*)", r"qformer.\1.attention.\2"),
    (r"Qformer\.bert\.(.*)", r"qformer.\1"),
    (r"ln_vision\.(.*)", r"vision_model.post_layernorm.\1"),
    (r"llm_proj\.(.*)", r"language_projection.\1"),
)
OF_BLIP2 = ("query_tokens", "qformer.", "vision_model.post_layernorm.", "language_projection.")
# What reads text in a Q-Former: BLIP-2's second stage leaves it out.
READS_TEXT = re.compile(
    r"qformer\.(embeddings\.(word|position)_embeddings|encoder\.layer\.\d+\.(intermediate|output))\..*"
)


def load(config: Model) -> Blip:
    """Load weights, tokenizers and image processor from a directory or a pinned hub revision.

    Errors: ValueError names what of the config does not fit the model.
    """
    where = source(config)
    found = AutoConfig.from_pretrained(**where)
    if found.model_type not in KINDS or not found.use_decoder_only_language_model:
        raise ValueError(
            f"{config.weights}: a {found.model_type} of a {found.get_text_config().model_type} is "
            f"none of {', '.join(KINDS)} with a language model that only decodes"
        )
    if config.pictures == "crop":
        raise ValueError("pictures: 'crop' is no way in which a BLIP looks: say `squash` or `pad`")
    module = KINDS[found.model_type].from_pretrained(
        **where, dtype=DTYPES[config.precision], use_safetensors=True
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(**where)
    image_processor = adjusted(BlipImageProcessorPil.from_pretrained(**where), config)
    if found.model_type == "blip-2":
        return Blip(config, module, tokenizer, image_processor)
    qformer_tokenizer = PreTrainedTokenizerFast.from_pretrained(
        **where, subfolder=QFORMER_TOKENIZER, truncation_side="left"
    )
    return Blip(config, module, tokenizer, image_processor, qformer_tokenizer)


def assemble(parts: dict[str, Path], out: Path) -> None:
    """Make InstructBLIP's directory, on request with what BLIP-2 knew before instruction tuning.

    Parts: `instructblip` (the model of the hub) and, if its Q-Former, query tokens and projection
    are to be BLIP-2's, `blip2` (blip2_pretrained_vicuna7b.pth of LAVIS, under the key `model`).
    That file has nothing of the Q-Former that reads text, which stays InstructBLIP's.

    Errors: ValueError names a part, file or tensor that is missing, foreign or of another shape.
    """
    released = assembly.part(parts, "instructblip")
    config = assembly.saved(InstructBlipConfig, released)
    with torch.device("meta"):
        module = InstructBlipForConditionalGeneration(config)
    earlier = _of_blip2(parts["blip2"], module) if "blip2" in parts else {}

    def tensors() -> assembly.Named:
        for name, tensor in assembly.renamed(assembly.tensors(released), RELEASED, released):
            yield name, earlier.get(name, tensor)

    def tokenizer(directory: Path) -> PreTrainedTokenizerFast:
        return assembly.saved(PreTrainedTokenizerFast, directory, "tokenizer.json")

    image_processor = assembly.saved(BlipImageProcessorPil, released, "preprocessor_config.json")
    others = {QFORMER_TOKENIZER: tokenizer(released / QFORMER_TOKENIZER)}
    assembly.write(tensors(), module, tokenizer(released), image_processor, out, others)


def _of_blip2(part: Path, module: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Read what BLIP-2 trained, by the names of an InstructBLIP, of which it must have all."""
    path = part / "blip2_pretrained_vicuna7b.pth"
    held = assembly.unpickled(path).get("model", {})
    found = dict(assembly.renamed(held.items(), BLIP2, path))
    own = {name for name in module.state_dict() if name.startswith(OF_BLIP2)}
    needed = {name for name in own if not READS_TEXT.fullmatch(name)}
    for problem, names in (
        ("is missing", needed - found.keys()),
        ("has no place in the model", found.keys() - own),
    ):
        if names:
            raise ValueError(f"{path}: tensor {min(names)} {problem} ({len(names)} such)")
    return found


class Blip(Conversing):
    """A BLIP-2 or InstructBLIP, which always looks at a picture, squashed into its square.

    The config's `pictures`: `pad` to a square of the mean colour first, `squash` (as if nothing
    were said), or settings of the image processor. The Q-Former of an InstructBLIP reads the
    questions of all turns and no answer, in training as in use, cut off on the left.
    """

    def __init__(
        self,
        config: Model,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: BlipImageProcessorPil,
        qformer_tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        self.config, self.module = config, module
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.qformer_tokenizer = qformer_tokenizer
        self.pad_id, self.end_id = tokenizer.pad_token_id, ending(config.chat, tokenizer)
        self.image_token = tokenizer.convert_ids_to_tokens(module.config.image_token_id)
        self.image_length = module.config.num_query_tokens
        if self.image_token not in config.chat.image:
            raise ValueError(
                f"chat.image: {config.chat.image!r} should hold {self.image_token!r}, which stands "
                "for the query tokens of a picture"
            )

    def save(self, directory: Path) -> None:
        """Write what any model is loaded with, and the Q-Former's tokenizer."""
        super().save(directory)
        if self.qformer_tokenizer is not None:
            self.qformer_tokenizer.save_pretrained(directory / QFORMER_TOKENIZER)

    def _read(self, example: Example, text: str) -> Read:
        if example.image is None:
            raise ValueError(
                f"{example.id}: has no picture, and a {self.module.config.model_type} reads no "
                "text without one: choose another model, or a task with pictures"
            )
        tokens = self.tokenizer(
            text.replace(self.image_token, self.image_token * self.image_length, 1),
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        picture = shown(example.image, self.config, self.image_processor)
        return Read(
            tokens["input_ids"],
            tokens["offset_mapping"],
            grown=len(self.image_token) * (self.image_length - 1),
            pictures={"pixel_values": pixel_values(self.image_processor, picture)},
            texts=self._instruction(example),
        )

    def _instruction(self, example: Example) -> dict[str, Any]:
        """Return what the Q-Former reads."""
        if self.qformer_tokenizer is None:
            return {}
        tokens = self.qformer_tokenizer(
            "\n".join(turn.question for turn in example.turns),
            truncation=True,
            max_length=self.module.config.qformer_config.max_position_embeddings,
        )
        return {f"qformer_{name}": tokens[name] for name in ("input_ids", "attention_mask")}
