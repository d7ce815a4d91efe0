"""The interface of an LMM: examples in, batches of tensors out, and the module that takes them.

Shapes: B examples, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import nn

from palimpsest.config import Chat
from palimpsest.data.example import Example

IGNORE = -100  # label of a token that is not learnt


@dataclass(frozen=True)
class Encoded:
    """One example as a model reads it."""

    input_ids: list[int]
    labels: list[int]  # IGNORE, or the token itself where it belongs to an answer
    # What else the module takes: of the picture, to be concatenated along the first axis, …
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    # … and of the tokens, to be padded with 0.
    tokens: dict[str, list[int]] = field(default_factory=dict)


class LMM(ABC):
    """A language model that looks at pictures.

    `module` is a transformers model: `module.base_model(**batch).last_hidden_state` is
    h_BLD, `module.get_output_embeddings()` maps D to V, and `module.generate` generates.
    """

    module: nn.Module
    pad_id: int
    end_id: int
    image_length: int  # tokens of one picture

    @abstractmethod
    def encode(self, example: Example) -> Encoded:
        """Encode a whole conversation for training; labels stand on the answers and their ends."""

    @abstractmethod
    def encode_prompt(self, example: Example) -> Encoded:
        """Encode a conversation up to where its last answer begins; nothing is labelled."""

    @abstractmethod
    def decode(self, token_ids: list[int]) -> str:
        """Return generated tokens as text, without special tokens and surrounding blanks."""

    def collate(self, encoded: list[Encoded], side: str) -> dict[str, torch.Tensor]:
        """Pad to the longest on one side: input_ids_BL, attention_mask_BL, labels_BL, and the rest.

        Padding goes to the right for training and to the left for generation.
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
        for name in dict.fromkeys(name for e in encoded for name in e.pictures):
            batch[name] = torch.cat([e.pictures[name] for e in encoded if name in e.pictures])
        return batch


def conversation(example: Example, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
    """Write an example in a model's chat format.

    Returns the text and, for each turn, the span of characters that is learnt: from the end of
    the prompt (without trailing blanks) to the end of the answer with its end token.
    """
    text, spans = chat.system, []
    for number, turn in enumerate(example.turns):
        image = chat.image if number == 0 and example.image is not None else ""
        before, after = chat.assistant.split("{answer}")
        text += chat.user.replace("{question}", image + turn.question) + before
        start = len(text.rstrip())
        text += turn.answer + after
        spans.append((start, len(text)))
    return text, spans
