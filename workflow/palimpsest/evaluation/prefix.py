"""Several questions about one picture: what stands before their words is computed once.

In a model that reads from left to right, the keys and values of the tokens up to a picture's end
depend on nothing behind it. They are computed once for all questions that begin alike, and each
question goes on from its own copy of them.

Shapes: B prompts, N distinct heads of at most H tokens, tails of at most T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from palimpsest.models.lmm import LMM, Encoded


class Cut(NamedTuple):
    """Prompts in two parts: their heads, each of them once, and their tails."""

    heads: list[Encoded]
    head_B: list[int]  # which of the heads a prompt begins with
    tails: list[Encoded]


def cut(prompts: Sequence[Encoded], picture_id: int | None) -> Cut | None:
    """Cut prompts behind their pictures; None if no picture is shared, or none can be.

    Prompts are about the same picture if they have the same tensors of it. Those without one are
    cut at the same place, so that neither part has to be padded for them.
    """
    looking = [prompt for prompt in prompts if prompt.pictures]
    if picture_id is None or len({id(prompt.pictures) for prompt in looking}) == len(looking):
        return None
    furthest = max(_end(prompt, picture_id) for prompt in looking)
    parts, numbers = Cut([], [], []), {}
    for prompt in prompts:
        ids, labels = prompt.input_ids, prompt.labels
        at = _end(prompt, picture_id) if prompt.pictures else min(furthest, len(ids) - 1)
        if not 0 < at < len(ids):
            return None  # nothing is left to go on with
        head = (id(prompt.pictures) if prompt.pictures else None, *ids[:at])
        number = numbers.setdefault(head, len(numbers))
        if number == len(parts.heads):
            parts.heads.append(Encoded(ids[:at], labels[:at], prompt.pictures))
        parts.head_B.append(number)
        parts.tails.append(Encoded(ids[at:], labels[at:]))
    return parts


def begun(lmm: LMM, parts: Cut) -> dict[str, Any]:
    """Compute the heads; return what `module.generate` takes to go on with the tails.

    That is input_ids_BT, attention_mask_BL with L = H + T, and the cache of the heads with a row
    for each prompt. Heads are padded on the right, where their tokens keep their positions.
    """
    heads = on_device(lmm, parts.heads, "right")
    tails = on_device(lmm, parts.tails, "left")
    cache = lmm.module.base_model(**heads, use_cache=True).past_key_values
    head_B = torch.tensor(parts.head_B, device=lmm.module.device)
    cache.batch_select_indices(head_B)
    seen_BL = torch.cat([heads["attention_mask"][head_B], tails["attention_mask"]], dim=1)
    return {**tails, "attention_mask": seen_BL, "past_key_values": cache}


def on_device(lmm: LMM, encoded: list[Encoded], side: str) -> dict[str, torch.Tensor]:
    """Collate what is not learnt from, where the model is."""
    batch = lmm.collate(encoded, side)
    return {name: t.to(lmm.module.device) for name, t in batch.items() if name != "labels"}


def _end(prompt: Encoded, picture_id: int) -> int:
    """Return how many tokens of a prompt there are up to the end of its picture."""
    return len(prompt.input_ids) - prompt.input_ids[::-1].index(picture_id)
