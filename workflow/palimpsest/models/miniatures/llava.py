"""Vicuna, CLIP and the stage-1 projector in small: random weights in the published formats."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from palimpsest.files import write_json

WIDTH, LAYERS, HEADS = 32, 2, 2
IMAGE_SIZE, PATCH_SIZE = 28, 14
PIECES = 512
TEXT = (  # whose words the tokenizer has pieces of
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT: "
    "Answer the question using a single word or phrase. Answer with the option's letter from the "
    "given choices directly. Please provide the bounding box coordinate of the region this "
    "sentence describes: What is the object in the image? Which colour is it? yes no red blue green"
)


def generate(out: Path, seed: int = 0) -> None:
    """Write `language_model/`, `vision/` and `projector/`, of which `assemble` makes a LLaVA."""
    generator = torch.Generator().manual_seed(seed)
    language = llama(out / "language_model")
    weights = drawn(language, generator)
    for layer in range(LAYERS):  # as Vicuna's files have it
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(WIDTH // 4)
    save_pickled(weights, out / "language_model")
    _clip(out / "vision", generator)
    _projector(out / "projector", generator)


def llama(directory: Path) -> dict[str, torch.Size]:
    """Write the config and tokenizer.model of a small Llama, and return its tensors' shapes."""
    directory.mkdir(parents=True)
    write_tokenizer(directory / "tokenizer.model")
    config = LlamaConfig(
        vocab_size=PIECES,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.save_pretrained(directory)
    return _shapes(LlamaForCausalLM, config)


def drawn(
    shapes: Mapping[str, Sequence[int]], generator: torch.Generator, dtype: torch.dtype = torch.half
) -> dict[str, Tensor]:
    """Draw tensors by their names: norms around 1, biases around 0, matrices that keep the size."""
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            noise = 0.1 * noise + name.endswith("weight")
        elif len(shape) > 1:
            noise *= (shape[0] / noise.numel()) ** 0.5
        weights[name] = noise.to(dtype)
    return weights


def save_pickled(weights: dict[str, Tensor], directory: Path, num_files: int = 2) -> None:
    """Write a checkpoint as the hub had it before safetensors, with its index."""
    places = {}
    for number in range(num_files):
        file = f"pytorch_model-{number + 1:05d}-of-{num_files:05d}.bin"
        names = list(weights)[number::num_files]
        torch.save({name: weights[name] for name in names}, directory / file)
        places |= dict.fromkeys(names, file)
    write_json(directory / "pytorch_model.bin.index.json", {"weight_map": places})


def write_tokenizer(path: Path) -> None:
    """Write a `tokenizer.model` of PIECES pieces in Llama's order: control, bytes, merged, single.

    It is a sentencepiece model, a protocol buffer: pieces (1), each of text (1), score (2) and type
    (3; 1 normal, 2 unknown, 3 control, 6 byte); how it was trained (2) and how it normalises (3).
    """
    single = ["▁", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = BpeTrainer(vocab_size=PIECES - 3 - 256, initial_alphabet=single, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    vocabulary = tokenizer.get_vocab()
    merged = sorted((piece for piece in vocabulary if len(piece) > 1), key=vocabulary.get)
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    pieces += [(piece, 1) for piece in [*merged, *single]]
    fields = [_piece(*piece, -index) for index, piece in enumerate(pieces)]
    fields.append(_field(2, b"\x18\x02\x98\x02\x01"))  # model_type 2: BPE; byte_fallback
    fields.append(_field(3, _field(1, b"identity") + b"\x18\x01\x20\x00"))  # blank put before
    path.write_bytes(b"".join(fields))


def _piece(text: str, kind: int, score: float) -> bytes:
    message = _field(1, text.encode()) + struct.pack("<Bf", 2 << 3 | 5, score)
    return _field(1, message + bytes([3 << 3, kind]))


def _field(number: int, value: bytes) -> bytes:
    """Return a field of bytes, of which there are fewer than 128."""
    return bytes([number << 3 | 2, len(value)]) + value


def _clip(directory: Path, generator: torch.Generator) -> None:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**sizes, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        projection_dim=16,
    )
    config.save_pretrained(directory)
    weights = drawn(_shapes(CLIPModel, config), generator, torch.float)
    for tower, number in (("text", 77), ("vision", (IMAGE_SIZE // PATCH_SIZE) ** 2 + 1)):
        ids = torch.arange(number).unsqueeze(0)
        weights[f"{tower}_model.embeddings.position_ids"] = ids
    torch.save(weights, directory / "pytorch_model.bin")
    processor = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_resize": True,
        "size": IMAGE_SIZE,
        "resample": 3,
        "do_center_crop": True,
        "crop_size": IMAGE_SIZE,
        "do_normalize": True,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
    }
    write_json(directory / "preprocessor_config.json", processor)


def _projector(directory: Path, generator: torch.Generator) -> None:
    directory.mkdir()
    layer = {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)}
    shapes = {f"model.mm_projector.{n}.{kind}": s for n in (0, 2) for kind, s in layer.items()}
    torch.save(drawn(shapes, generator), directory / "mm_projector.bin")


def _shapes(kind: type[PreTrainedModel], config: LlamaConfig | CLIPConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: t.shape for name, t in kind(config).state_dict().items()}
