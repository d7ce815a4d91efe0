"""The interface of an LMM: examples in, batches of tensors out, and the module that takes them.

Shapes: B examples, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from palimpsest.config import Chat, Encoder, Model
from palimpsest.data.example import Example
from palimpsest.files import sha256
from palimpsest.methods.answers import IGNORE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Encoded:
    """One example as a model reads it."""

    input_ids: list[int]
    labels: list[int]  # IGNORE, or the token itself where it belongs to an answer
    # What else the module takes: of the picture, to be concatenated along the first axis, …
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    # … of the tokens, to be padded with 0 as these are, …
    tokens: dict[str, list[int]] = field(default_factory=dict)
    # … and of a text beside, as long as that is, to be padded with 0 on the right.
    texts: dict[str, list[int]] = field(default_factory=dict)


class LMM(ABC):
    """A language model that looks at pictures.

    `module` is a transformers model: `module.base_model(**batch).last_hidden_state` is
    h_BLD, `module.get_output_embeddings()` maps D to V, and `module.generate` generates.
    """

    module: nn.Module
    pad_id: int
    end_id: int
    image_length: int  # tokens of one picture; of a usual one where that depends on the picture
    # The token in a picture's places, if what the model makes of a prompt up to there depends on
    # nothing behind it, so that several questions about the picture can share it. Prompts are then
    # ids and pictures alone, and those about one picture that are encoded in turn have the same
    # tensors of it.
    picture_id: int | None = None

    @abstractmethod
    def encode(self, example: Example) -> Encoded:
        """Encode a whole conversation for training; labels stand on the answers and their ends."""

    @abstractmethod
    def encode_prompt(self, example: Example) -> Encoded:
        """Encode a conversation up to where its last answer begins; nothing is labelled."""

    @abstractmethod
    def decode(self, token_ids: list[int]) -> str:
        """Return generated tokens as text, without special tokens."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the model with all that it is loaded with, as its publisher would."""

    def collate(self, encoded: list[Encoded], side: str) -> dict[str, torch.Tensor]:
        """Pad to the longest on one side: input_ids_BL, attention_mask_BL, labels_BL, and the rest.

        Padding goes to the right for training and to the left for generation. Where pictures
        differ in size or number of tiles, zeros follow the smaller, as processors have it.
        """
        longest = max(len(e.input_ids) for e in encoded)

        def padded_BL(rows: list[list[int]], filler: int) -> torch.Tensor:
            gaps = [[filler] * (longest - len(row)) for row in rows]
            pairs = zip(rows, gaps, strict=True)
            return torch.tensor([g + r if side == "left" else r + g for r, g in pairs])

        batch = {
            "input_ids": padded_BL([e.input_ids for e in encoded], self.pad_id),
            "attention_mask": padded_BL([[1] * len(e.input_ids) for e in encoded], 0),
            "labels": padded_BL([e.labels for e in encoded], IGNORE),
        }
        for name in encoded[0].tokens:
            batch[name] = padded_BL([e.tokens[name] for e in encoded], 0)
        for name in encoded[0].texts:
            texts = [torch.tensor(e.texts[name]) for e in encoded]
            batch[name] = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        for name in dict.fromkeys(name for e in encoded for name in e.pictures):
            batch[name] = _stacked([e.pictures[name] for e in encoded if name in e.pictures])
        return batch


@dataclass(frozen=True)
class Read:
    """A text as a tokenizer reads it, in which a picture's placeholder has grown to its tokens."""

    input_ids: list[int]
    offsets: list[tuple[int, int]]  # of each token, in characters of the grown text
    grown: int  # by so many characters, all of them before the first answer
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, list[int]] = field(default_factory=dict)


class Conversing(LMM):
    """An LMM that reads conversations as its config's `chat` writes them.

    Of a family there remains to say how it reads a text and the picture that belongs to it.
    """

    config: Model
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor

    def save(self, directory: Path) -> None:
        """Write weights, config, tokenizer and image processor."""
        for piece in (self.module, self.tokenizer, self.image_processor):
            piece.save_pretrained(directory)

    @abstractmethod
    def _read(self, example: Example, text: str) -> Read:
        """Read a text, and the example's picture at its placeholder in it."""

    def encode(self, example: Example) -> Encoded:
        """Encode a whole conversation, cut off at the model's maximal length.

        Errors: ValueError if that cuts off a part of the picture.
        """
        text, spans = conversation(example, self.config.chat)
        read, limit = self._read(example, text), self.config.max_length
        learnt = [(start + read.grown, end + read.grown) for start, end in spans]
        labels = [
            token if any(start < last <= end for start, end in learnt) else IGNORE
            for token, (_, last) in zip(read.input_ids, read.offsets, strict=True)
        ]
        if read.pictures and len(labels) > limit:
            image = self.config.chat.image
            end = text.index(image) + len(image) + read.grown
            if read.offsets[limit][0] < end:
                raise ValueError(
                    f"{example.id}: max_length: {limit} tokens end inside the picture; give the "
                    "model's config a larger one, or `pictures` that take fewer tokens"
                )
        tokens = {name: values[:limit] for name, values in read.tokens.items()}
        return Encoded(read.input_ids[:limit], labels[:limit], read.pictures, tokens, read.texts)

    def encode_prompt(self, example: Example) -> Encoded:
        """Encode the conversation up to its last answer; it is never cut off."""
        text, spans = conversation(example, self.config.chat)
        read = self._read(example, text[: spans[-1][0]])
        unlearnt = [IGNORE] * len(read.input_ids)
        return Encoded(read.input_ids, unlearnt, read.pictures, read.tokens, read.texts)

    def decode(self, token_ids: list[int]) -> str:
        """Return generated tokens as text."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


def conversation(example: Example, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
    """Write an example in a model's chat format.

    Returns the text and, for each turn, the span of characters that is learnt: from the end of
    the prompt to the end of the answer with its end token. Spaces that end the prompt are learnt,
    as tokenizers make them a part of the answer's first word.
    """
    text, spans = chat.system, []
    for number, turn in enumerate(example.turns):
        image = chat.image if number == 0 and example.image is not None else ""
        before, after = chat.assistant.split("{answer}")
        text += chat.user.replace("{question}", image + turn.question) + before
        start = len(text.rstrip(" "))
        text += turn.answer + after
        spans.append((start, len(text)))
    return text, spans


def ending(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends an answer: what a model's chat has next after it.

    Errors: ValueError if that is nothing.
    """
    after = chat.assistant.split("{answer}")[1]
    tokens = tokenizer(after, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise ValueError("chat.assistant: {answer} must be followed by the token that ends it")
    return tokens[0]


def source(config: Model | Encoder) -> dict[str, str | None]:
    """Return where a model's files are, as transformers' `from_pretrained` takes it.

    Errors: ValueError if there is no model, or its weights are not those of the config's sha256.
    """
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
    return {"pretrained_model_name_or_path": config.weights, "revision": config.revision}


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate along the first axis; the other axes grow to the largest, filled with zeros."""
    largest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]

    def grown(tensor: torch.Tensor) -> torch.Tensor:
        gaps = [(0, most - size) for most, size in zip(largest, tensor.shape[1:], strict=True)]
        return nn.functional.pad(tensor, [n for gap in reversed(gaps) for n in gap])

    return torch.cat([grown(tensor) for tensor in tensors])
