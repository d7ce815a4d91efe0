"""MiniGPT-4 after its second stage, with Vicuna v0 or with Llama-2, and pictures of 224 pixels.

It reads conversations and pictures as a LLaVA does; its chat puts <ImageHere> where they go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2QFormerConfig, Blip2VisionConfig

from palimpsest.config import Model
from palimpsest.models import assembly, eva_vit
from palimpsest.models.families.instructblip import BLIP2
from palimpsest.models.families.llava import Llava, load_as
from palimpsest.models.families.minigpt_v2 import IMAGE
from palimpsest.models.minigpt_4 import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from palimpsest.models.minigpt_v2 import JOINED

QFORMER = "blip2_pretrained_flant5xxl.pth"
VICUNA, LLAMA_2 = "prerained_minigpt4_7b.pth", "pretrained_minigpt4_llama2_7b.pth"  # as released
HEAD_WIDTH = 64  # of the Q-Former, which is a BERT; no file says it

PROJECTOR = "model.multi_modal_projector"
# The released code loads the Q-Former's file and then its own, each by the names of one model.
RELEASED: assembly.Rules = (
    (r"llama_proj\.(.*)", rf"{PROJECTOR}.linear.\1"),
    (r"ln_vision\.(.*)", rf"{eva_vit.TOWER}.post_layernorm.\1"),
    (r"t5_proj\..*", None),  # what projected to FlanT5
    (r"Qformer\.bert\.embeddings\.LayerNorm\.(.*)", rf"{PROJECTOR}.qformer.layernorm.\1"),
    *((theirs, ours and f"{PROJECTOR}.{ours}") for theirs, ours in BLIP2),
)


def load(config: Model) -> MiniGPT4:
    """Load what `assemble` has made.

    Errors: ValueError if nothing ends an answer in the config's `chat`.
    """
    lmm = load_as(MiniGPT4ForConditionalGeneration, config)
    return MiniGPT4(config, lmm.module, lmm.tokenizer, lmm.image_processor)


def assemble(parts: dict[str, Path], out: Path) -> None:
    """Make the model's directory from its published parts.

    Parts: `language_model` (a Llama of the hub with tokenizer.model), `vision` (eva_vit_g.pth of
    LAVIS, whose last block is left out), `checkpoint` (the file that holds the linear projection,
    under the key `model`) and, in the form with Vicuna, `qformer` (blip2_pretrained_flant5xxl.pth
    of LAVIS: query tokens, Q-Former and the norm before them, under the key `model`).

    Errors: ValueError names a part, file or tensor that is missing, foreign or of another shape.
    """
    language = assembly.part(parts, "language_model")
    eva = assembly.part(parts, "vision") / "eva_vit_g.pth"
    checkpoint = assembly.part(parts, "checkpoint") / (VICUNA if "qformer" in parts else LLAMA_2)
    tower = assembly.unpickled(eva)
    tokenizer = assembly.llama_tokenizer(language, IMAGE)
    vision = eva_vit.vision_config(tower, eva)
    text = assembly.llama_config(language, tokenizer)
    if "qformer" in parts:
        sizes, learnt = _querying(parts["qformer"] / QFORMER, vision)
    else:
        sizes, learnt = _joining(vision)
    learnt |= _released(checkpoint)
    config = MiniGPT4Config(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        **sizes,
    )
    with torch.device("meta"):
        module = MiniGPT4ForConditionalGeneration(config)

    def tensors() -> assembly.Named:
        yield from assembly.llama(language, text.vocab_size)
        yield from eva_vit.tensors(tower, vision, eva)
        yield from learnt.items()

    image_processor = eva_vit.image_processor(vision.image_size)
    assembly.write(tensors(), module, tokenizer, image_processor, out)


def _released(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint of what was trained, by the names of our model."""
    return dict(assembly.renamed(assembly.unpickled(path).get("model", {}).items(), RELEASED, path))


def _querying(path: Path, vision: Blip2VisionConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read BLIP-2's Q-Former: its sizes, and its tensors by the names of our model."""
    learnt = _released(path)
    own = {name.removeprefix(f"{PROJECTOR}."): t.shape for name, t in learnt.items()}
    try:
        _, num_queries, width = own["query_tokens"]
        (mlp,) = own["qformer.encoder.layer.0.intermediate_query.dense.bias"]
    except KeyError as name:
        raise ValueError(f"{path}: no tensor is {name} of a Q-Former: is it BLIP-2's?") from None
    layers = {name.split(".")[3] for name in own if name.startswith("qformer.encoder.layer.")}
    config = Blip2QFormerConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=len(layers),
        num_attention_heads=width // HEAD_WIDTH,
        encoder_hidden_size=vision.hidden_size,
    )
    return {"qformer_config": config, "image_seq_length": num_queries}, learnt


def _joining(vision: Blip2VisionConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what stands in for the Q-Former: its size, and a norm as it is created."""
    num_patches = (vision.image_size // vision.patch_size) ** 2
    norm = assembly.renamed(eva_vit.fresh_norm(vision).items(), RELEASED, Path())
    return {"image_seq_length": num_patches // JOINED}, dict(norm)


class MiniGPT4(Llava):
    """A model that ends an answer as its chat says: with Vicuna v0 by `###`, several tokens."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.end = self.config.chat.assistant.split("{answer}")[1]
        # As it is read behind a word; by itself it would begin with a blank.
        tokens = self.tokenizer(f"a{self.end}", add_special_tokens=False)["input_ids"]
        if len(tokens) == 1:
            raise ValueError("chat.assistant: {answer} must be followed by what ends it")
        self.end_id = tokens[1]

    def decode(self, token_ids: list[int]) -> str:
        """Return generated tokens as text, up to the end of the answer."""
        if self.end_id in token_ids:
            token_ids = token_ids[: token_ids.index(self.end_id)]
        return super().decode(token_ids).split(self.end)[0]
