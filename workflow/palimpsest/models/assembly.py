"""Published checkpoints, each in its own format, put together into the directory of one model.

Tensors flow from the published files into shards, so that no more than a shard is in memory; their
names are translated by rules, and a tensor that no rule knows, or that is missing, is named.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.tokenization_utils_base import generate_merges

from palimpsest.files import whole_directory, write_json

SHARD_BYTES = 2 * 2**30
PAD = "<pad>"
ROWS = 64  # an embedding has a multiple of so many rows, as matrix products like it

T = TypeVar("T")
Named = Iterable[tuple[str, Tensor]]
Rules = Sequence[tuple[str, str | None]]  # a pattern of whole names, and the new name or nothing

LLAMA: Rules = (
    (r"model\.(layers\..*\.rotary_emb\.inv_freq)", None),  # computed, but stored by old versions
    (r"model\.(.*)", r"model.language_model.\1"),
    (r"lm_head\.weight", "lm_head.weight"),
)


def part(parts: dict[str, Path], role: str) -> Path:
    """Return the directory of a part; ValueError if there is none for the role."""
    if role not in parts:
        found = ", ".join(parts) or "none"
        raise ValueError(f"parts: {role} is missing (there are: {found}); name its download")
    return parts[role]


def saved(kind: type[T], directory: Path, file: str = "config.json") -> T:
    """Read a config or processor of transformers; ValueError if its file is missing."""
    if not (directory / file).is_file():
        raise ValueError(f"{directory / file}: file is missing")
    return kind.from_pretrained(directory)


def unpickled(path: Path) -> Any:
    """Read a torch pickle of tensors, which stay on disk until they are used.

    Errors: ValueError names a file that is missing, broken, or holds more than tensors.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise ValueError(f"{path}: file is missing") from None
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: no torch file of plain tensors ({reason})") from None


def tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a hub checkpoint: model*.safetensors, or else pytorch_model*.bin.

    Errors: ValueError names a directory without weights, or a broken file.
    """
    if paths := sorted(directory.glob("model*.safetensors")):
        for path in paths:
            try:
                with safe_open(path, "pt") as file:
                    names = file.keys()
                    yield from ((name, file.get_tensor(name)) for name in names)
            except SafetensorError as error:
                raise ValueError(f"{path}: not a valid safetensors file ({error})") from None
    elif paths := sorted(directory.glob("pytorch_model*.bin")):
        for path in paths:
            yield from unpickled(path).items()
    else:
        raise ValueError(f"{directory}: neither model*.safetensors nor pytorch_model*.bin is here")


def renamed(named: Named, rules: Rules, where: Path) -> Iterator[tuple[str, Tensor]]:
    """Translate names by the first rule that fits, and leave out what has no new name.

    Errors: ValueError names the tensor that no rule fits, and `where` it is from.
    """
    for name, tensor in named:
        fits = ((re.fullmatch(pattern, name), new) for pattern, new in rules)
        match, new = next((pair for pair in fits if pair[0]), (None, None))
        if match is None:
            raise ValueError(
                f"{where}: tensor {name} is foreign: is this the published checkpoint?"
            )
        if new is not None:
            yield match.expand(new), tensor


def llama(directory: Path, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Yield a Llama's tensors as a LLaVA names them, with `rows` rows of embeddings.

    The new rows are the mean of the old: no text holds their tokens, and a logit that is the mean
    of all logits is never the largest.
    """
    for name, tensor in renamed(tensors(directory), LLAMA, directory):
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
            tensor = torch.cat([tensor, mean.expand(rows - len(tensor), -1)])
        yield name, tensor


def llama_config(directory: Path, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return a Llama's config with room for the tokens that `llama_tokenizer` adds.

    Errors: ValueError if the tokenizer is not that of the model.
    """
    config = saved(LlamaConfig, directory)
    # Vicuna v0 has a row more, of a [PAD] that was never an answer; it is as good as a new one.
    if config.vocab_size - tokenizer.vocab_size not in (0, 1):
        raise ValueError(
            f"{directory}: tokenizer.model has {tokenizer.vocab_size} pieces, but config.json says "
            f"vocab_size {config.vocab_size}: are both of the same model?"
        )
    config.vocab_size = -(-len(tokenizer) // ROWS) * ROWS
    config.pad_token_id = tokenizer.pad_token_id
    return config


def write(
    named: Named,
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    image_processor: BaseImageProcessor,
    out: Path,
    tokenizers: Mapping[str, PreTrainedTokenizerFast] = MappingProxyType({}),
) -> None:
    """Write a model's directory, whole or not at all; `module` itself may be on the meta device.

    `tokenizers` are further ones, by the folders that they stand in.

    Errors: ValueError names a tensor that is foreign, doubled, missing or of another shape.
    """
    with whole_directory(out) as directory:
        _write_shards(named, {n: t.shape for n, t in module.state_dict().items()}, directory)
        module.config.architectures = [type(module).__name__]
        for piece in (module.config, tokenizer, image_processor):
            piece.save_pretrained(directory)
        for folder, piece in tokenizers.items():
            piece.save_pretrained(directory / folder)


def _write_shards(named: Named, shapes: dict[str, torch.Size], directory: Path) -> None:
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(named), 1):
        file = f"model-{number:05d}.safetensors"
        for name, tensor in shard.items():
            if name not in shapes or name in places:
                raise ValueError(f"tensor {name} has no place in the model, or is there twice")
            if tensor.shape != shapes[name]:
                raise ValueError(
                    f"tensor {name} has shape {tuple(tensor.shape)}, but the model's has "
                    f"{tuple(shapes[name])}: are all parts of the same model?"
                )
            places[name] = file
        save_file(shard, directory / file, metadata={"format": "pt"})
    if missing := sorted(shapes.keys() - places.keys()):
        raise ValueError(f"no part has tensor {missing[0]} ({len(missing)} are missing)")
    size = sum(path.stat().st_size for path in directory.iterdir())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(directory / "model.safetensors.index.json", index)


def _shards(named: Named) -> Iterator[dict[str, Tensor]]:
    """Gather tensors until they fill a shard."""
    shard, size = {}, 0
    for name, tensor in named:
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def llama_tokenizer(directory: Path, image: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of Llama's `tokenizer.model` with two more tokens: `image` and <pad>.

    It does what sentencepiece does by that file: a text begins with a blank, and so does a text
    after a special token; nothing else is normalised; what has no piece is read byte by byte.

    Errors: ValueError if the file is missing or no sentencepiece model.
    """
    path = directory / "tokenizer.model"
    scores = _pieces(path)
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    model = BPE(
        vocabulary,
        generate_merges(vocabulary, scores),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", image, PAD])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=PAD,
        extra_special_tokens={"image_token": image},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _pieces(path: Path) -> dict[str, float]:
    """Return the pieces of a sentencepiece model and their scores: the best are merged first.

    They are fields 1 of its ModelProto, in each of which field 1 is the piece and 2 its score.
    """
    try:
        pieces = [dict(_fields(value)) for field, value in _fields(path.read_bytes()) if field == 1]
        return {piece[1].decode(): struct.unpack("<f", piece[2])[0] for piece in pieces}
    except FileNotFoundError:
        raise ValueError(f"{path}: file is missing") from None
    except (KeyError, IndexError, TypeError, UnicodeDecodeError, struct.error):
        raise ValueError(f"{path}: not a sentencepiece model") from None


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the raw value of each field of a protocol buffer's message."""
    stream = BytesIO(message)
    while stream.tell() < len(message):
        field, wire_type = divmod(_varint(stream), 8)
        if wire_type == 0:
            yield field, _varint(stream)
        else:
            yield field, stream.read({1: 8, 5: 4}[wire_type] if wire_type != 2 else _varint(stream))


def _varint(stream: BytesIO) -> int:
    value, shift = 0, 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7
