"""Qwen-VL and Qwen-VL-Chat (Bai et al., arXiv 2308.12966), from the released checkpoint.

`assemble` turns the released files (hub: Qwen/Qwen-VL-Chat), which come with code of their own,
into a directory that is loaded without it.
"""

from __future__ import annotations

import base64
from pathlib import Path

import torch
from tokenizers.normalizers import NFC
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palimpsest.config import Model
from palimpsest.files import read_json
from palimpsest.models import assembly
from palimpsest.models.families.llava import Llava, load_as
from palimpsest.models.qwen_vl import QwenVLConfig, QwenVLForConditionalGeneration

# Of the released tokenizer: how a text is cut into words, and the tokens after the vocabulary's.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PAD, END, IMAGE_START = "<|endoftext|>", "<|im_end|>", "<img>"
SPECIAL = [PAD, "<|im_start|>", END, *(f"<|extra_{n}|>" for n in range(205))]
SPECIAL += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"]
SPECIAL += [IMAGE_START, "</img>", "<imgpad>"]
NAMES: assembly.Rules = (
    (r".*\.rotary_emb\.inv_freq", None),  # computed, but stored by old versions
    (r".*", r"\g<0>"),
)


def load(config: Model) -> Llava:
    """Load what `assemble` wrote.

    A Qwen-VL reads as a LLaVA does: the chat format writes `<img><imgpad></img>` for a picture,
    and `<imgpad>` is repeated for each of its features.

    Errors: ValueError if there is no model, or `max_length` is more than it was trained with.
    """
    lmm = load_as(QwenVLForConditionalGeneration, config)
    limit = lmm.module.config.text_config.max_position_embeddings
    if config.max_length > limit:
        raise ValueError(
            f"{config.title}: max_length: {config.max_length} is more than the {limit} tokens "
            f"that {config.weights} was trained with; give at most {limit}"
        )
    return lmm


def assemble(parts: dict[str, Path], out: Path) -> None:
    """Make a directory that `load` reads of the released one, `parts["checkpoint"]`.

    Weights keep their names and their precision.

    Errors: ValueError names the file, and the tensor or key that is missing or of another model.
    """
    released = assembly.part(parts, "checkpoint")
    path = released / "config.json"
    try:
        config = QwenVLConfig.from_released(read_json(path))
    except KeyError as key:
        raise ValueError(f"{path}: {key} is missing; is it of a Qwen-VL?") from None
    tokens = tokenizer(released / "qwen.tiktoken")
    wanted = config.vision_config.image_start_id
    if (found := tokens.convert_tokens_to_ids(IMAGE_START)) != wanted:
        raise ValueError(
            f"{released}: {IMAGE_START} is token {found} by qwen.tiktoken, but {wanted} by "
            "config.json (visual.image_start_id): the files are not of one release"
        )
    with torch.device("meta"):
        module = QwenVLForConditionalGeneration(config)
    weights = assembly.renamed(assembly.tensors(released), NAMES, released)
    assembly.write(weights, module, tokens, _image_processor(config), out)


def tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a released vocabulary, which brings text to Unicode's NFC first.

    Ids are those of the released one: the vocabulary's ranks, then the special tokens.

    Errors: ValueError if the file is missing or not a vocabulary of tiktoken.
    """
    converted = _Vocabulary(str(path), pattern=WORDS, extra_special_tokens=SPECIAL).converted()
    converted.normalizer = NFC()
    return PreTrainedTokenizerFast(tokenizer_object=converted, pad_token=PAD, eos_token=END)


class _Vocabulary(TikTokenConverter):
    """transformers' converter; it reads the file without the package tiktoken."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """Return the rank of each token: a line holds its bytes in base64 and the rank."""
        try:
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in lines}
        except FileNotFoundError:
            raise ValueError(f"{tiktoken_url}: file is missing") from None
        except ValueError as error:
            raise ValueError(f"{tiktoken_url}: not a vocabulary of tiktoken ({error})") from None


def _image_processor(config: QwenVLConfig) -> CLIPImageProcessorPil:
    """Return CLIP's, but that it squashes a picture into the square."""
    side = config.vision_config.image_size
    return CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
