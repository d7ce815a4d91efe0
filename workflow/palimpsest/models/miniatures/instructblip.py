"""InstructBLIP of the hub, and BLIP-2 before its instruction tuning, in small: random weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor
from transformers import InstructBlipConfig, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipForConditionalGeneration,
)

from palimpsest.files import write_json
from palimpsest.models.assembly import llama_tokenizer
from palimpsest.models.families.instructblip import OF_BLIP2, QFORMER_TOKENIZER
from palimpsest.models.miniatures.llava import (
    HEADS,
    IMAGE_SIZE,
    LAYERS,
    PATCH_SIZE,
    TEXT,
    WIDTH,
    drawn,
    write_tokenizer,
)

QUERIES = 4
QFORMER_WIDTH = 16
IMAGE = "<image>"


def generate(out: Path, seed: int = 0) -> None:
    """Write `instructblip/`, as the hub has it, and `blip2/`, as LAVIS has it."""
    generator = torch.Generator().manual_seed(seed)
    directory = out / "instructblip"
    directory.mkdir(parents=True)
    config = InstructBlipConfig(**_sizes(_tokenizers(directory)))
    config.architectures = ["InstructBlipForConditionalGeneration"]
    config.save_pretrained(directory)
    _image_processor(directory)
    with torch.device("meta"):
        state = InstructBlipForConditionalGeneration(config).state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    weights = drawn(shapes, generator, torch.float)
    _save_shards(weights, directory)
    trained = {name: shape for name, shape in shapes.items() if name.startswith(OF_BLIP2)}
    trained = {_of_lavis(name): shape for name, shape in trained.items()}
    earlier = drawn({n: s for n, s in trained.items() if not _reads_text(n)}, generator)
    earlier["Qformer.bert.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    (out / "blip2").mkdir()
    torch.save({"model": earlier}, out / "blip2" / "blip2_pretrained_vicuna7b.pth")


def _tokenizers(directory: Path) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Write a Llama's tokenizer, whose texts begin with </s>, and a BERT's with [DEC] after all."""
    write_tokenizer(directory / "tokenizer.model")
    llama = llama_tokenizer(directory, IMAGE)
    llama.bos_token = llama.unk_token = "</s>"
    llama.save_pretrained(directory)
    single = [chr(n) for n in range(33, 127)]
    words = re.findall(r"[a-z]{2,}", TEXT.lower())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *single, *(f"##{c}" for c in single), *words, "[DEC]"])
    ids = {piece: n for n, piece in enumerate(pieces)}
    reader = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    reader.decoder = decoders.WordPiece()
    reader.normalizer = normalizers.BertNormalizer(lowercase=True)
    reader.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    reader.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    bert = PreTrainedTokenizerFast(
        tokenizer_object=reader,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[DEC]",
    )
    bert.save_pretrained(directory / QFORMER_TOKENIZER)
    return llama, bert


def _sizes(tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]) -> dict:
    llama, bert = tokenizers
    layers = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    vision = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, **layers}
    qformer = {"hidden_size": QFORMER_WIDTH, "intermediate_size": 2 * QFORMER_WIDTH, **layers}
    text = {"model_type": "llama", "vocab_size": len(llama), "pad_token_id": llama.pad_token_id}
    return {
        "vision_config": {**vision, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        "qformer_config": {**qformer, "vocab_size": len(bert), "max_position_embeddings": 64},
        "text_config": {**vision, **text, "num_key_value_heads": HEADS, "rms_norm_eps": 1e-6},
        "num_query_tokens": QUERIES,
        "image_token_index": llama.convert_tokens_to_ids(IMAGE),
    }


def _image_processor(directory: Path) -> None:
    settings = {
        "image_processor_type": "BlipImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    write_json(directory / "preprocessor_config.json", settings)
    about = {"num_query_tokens": QUERIES, "processor_class": "InstructBlipProcessor"}
    write_json(directory / "processor_config.json", about)


def _save_shards(weights: dict[str, Tensor], directory: Path) -> None:
    places = {name: f"model-{n % 2 + 1:05d}-of-00002.safetensors" for n, name in enumerate(weights)}
    for file in sorted(set(places.values())):
        shard = {name: weights[name] for name in weights if places[name] == file}
        save_file(shard, directory / file, metadata={"format": "pt"})
    write_json(directory / "model.safetensors.index.json", {"weight_map": places})


def _of_lavis(name: str) -> str:
    """Return LAVIS's name of a tensor."""
    for ours, theirs in (
        ("qformer.embeddings.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
        ("qformer.", "Qformer.bert."),
        ("attention.attention.", "attention.self."),
        ("vision_model.post_layernorm.", "ln_vision."),
        ("language_projection.", "llm_proj."),
    ):
        name = name.replace(ours, theirs)
    return name


def _reads_text(name: str) -> bool:
    """Say if a tensor of LAVIS's Q-Former serves text alone, which BLIP-2's stage 2 has none of."""
    parts = name.split(".")
    of_layer = len(parts) > 5 and parts[5] in ("intermediate", "output")
    return of_layer or "word_embeddings" in parts or "position_embeddings" in parts
