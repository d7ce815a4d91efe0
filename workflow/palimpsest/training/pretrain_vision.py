"""The first phase of pretraining: the tower and projector learn to say what each patch shows.

It stands in place of CLIP and of LLaVA's alignment. A patch's projected feature must score the
words for what the patch shows against the (frozen, tied) word embeddings. Linear heads, thrown
away later, must tell the patch's place and the box of its thing: features carry geometry.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from palimpsest.data.pictures.drawing import (
    BLACK,
    CELL,
    CELLS,
    COLOURS,
    GRID,
    LETTERS,
    SHAPES,
    SIDE,
    WHITE,
    Random,
    background,
    blur,
    box_in_grid,
    darken,
    pick,
    sample,
    write,
)
from palimpsest.data.pictures.layouts import bar_chart, in_cells, panel, scattered
from palimpsest.data.pictures.strokes import CHARACTERS, big_character
from palimpsest.models.demo import NUM_PATCHES

EMPTY = "nothing"
WORDS = (EMPTY, *COLOURS, *SHAPES, *CHARACTERS, "bar", "blurred", "dark")
_INDEX = {word: k for k, word in enumerate(WORDS)}
_NO_BOX = -100


class Labelled(NamedTuple):
    """A picture, for each patch the two words that tell what it shows, and the box around that."""

    picture: Image.Image
    words_P2: np.ndarray
    boxes_P4: np.ndarray


def _empty() -> tuple[np.ndarray, np.ndarray]:
    words = np.zeros((CELLS, CELLS, 2), np.int64)
    return words, np.full((CELLS, CELLS, 4), _NO_BOX, np.int64)


def _mark(words, boxes, box, first: str, second: str) -> None:
    """Label the patches of which the box covers at least a sixth."""
    for row in range(CELLS):
        for column in range(CELLS):
            x, y = column * CELL, row * CELL
            width = min(box[2], x + CELL) - max(box[0], x)
            height = min(box[3], y + CELL) - max(box[1], y)
            if width > 0 and height > 0 and width * height >= CELL * CELL / 6:
                words[row, column] = _INDEX[first], _INDEX[second]
                boxes[row, column] = box_in_grid(box)


def _letters(random: Random) -> Labelled:
    words, boxes = _empty()
    picture, ink = background(random), WHITE
    if random.random() < 0.4:
        picture = Image.new(
            "RGB", (SIDE, SIDE), tuple(int(v) for v in random.integers(170, 255, 3))
        )
        ink = BLACK
    elif random.random() < 0.3:
        colour = tuple(int(v * 0.6) for v in COLOURS[pick(random, list(COLOURS))])
        picture = Image.new("RGB", (SIDE, SIDE), colour)
    plates = (
        sample(random, list(COLOURS), CELLS) if ink is WHITE and random.random() < 0.5 else None
    )
    for row in range(CELLS):
        for column in range(CELLS):
            if random.random() < 0.6:
                letter = pick(random, LETTERS)
                if plates:
                    panel(picture, plates[row], column, row, 1)
                write(picture, letter, column, row * CELL, ink)
                words[row, column] = _INDEX[letter], _INDEX[plates[row] if plates else letter]
    return Labelled(picture, words.reshape(-1, 2), boxes.reshape(-1, 4))


def _disturb(random: Random, picture: Image.Image, words, boxes) -> Image.Image:
    """At times a picture is a little blurred, or so blurred or dark that this is all it shows."""
    kind = random.random()
    if kind < 0.8:
        return picture
    if kind < 0.9:
        return blur(picture, float(random.random() * 0.8))
    word = "blurred" if kind < 0.95 else "dark"
    words[:], boxes[:] = _INDEX[word], _NO_BOX
    if word == "dark":
        return darken(picture, float(random.uniform(0.05, 0.2)))
    return blur(picture, float(random.uniform(4, 9)))


def draw_labelled(random: Random) -> Labelled:
    """A picture of things, letters, bars or one large character, with its labels."""
    kind = random.random()
    if kind < 0.3:
        return _letters(random)
    words, boxes = _empty()
    if kind < 0.5:
        name = pick(random, CHARACTERS[:10] if random.random() < 0.6 else CHARACTERS)
        picture, box = big_character(random, name)
        _mark(words, boxes, box, name, name)
        boxes[:] = _NO_BOX
    elif kind < 0.58:
        picture, bars = bar_chart(random, int(random.integers(3, 5)))
        for k, (colour, height) in enumerate(zip(bars.colours, bars.heights, strict=True)):
            box = (k * CELL, SIDE - height * CELL, (k + 1) * CELL, SIDE)
            _mark(words, boxes, box, colour, "bar")
    else:
        draw = in_cells if kind < 0.75 else scattered
        picture, things = draw(random, int(random.integers(1, 6 if kind < 0.75 else 5)))
        for thing in things:
            _mark(words, boxes, thing.box, thing.colour, thing.shape)
        picture = _disturb(random, picture, words, boxes)
    return Labelled(picture, words.reshape(-1, 2), boxes.reshape(-1, 4))


class VisionPhase(nn.Module):
    """The loss of the first phase; ``embeddings_VD`` stay fixed."""

    def __init__(self, model, tokenizer) -> None:
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        weight = model.get_input_embeddings().weight.detach()
        tokens = tokenizer.convert_tokens_to_ids(list(WORDS))
        self.register_buffer("embeddings_WD", weight[tokens].clone())
        self.scale = 8 / weight.pow(2).sum(1).mean().item()
        self.place = nn.Linear(weight.shape[1], NUM_PATCHES)
        self.edges = nn.Linear(weight.shape[1], 4 * (GRID + 1))

    def forward(self, pixels_BCHW, words_BP2, boxes_BP4) -> tuple[torch.Tensor, float]:
        """The loss, and the share of patches with something in them whose two words score best."""
        features = self.projector(self.tower(pixels_BCHW).last_hidden_state[:, 1:])
        scores_BPW = torch.log_softmax(features @ self.embeddings_WD.T * self.scale, -1)
        said = scores_BPW.gather(-1, words_BP2).mean(-1)
        weight = torch.where(words_BP2[..., 0] > 0, 3.0, 1.0)
        words = -(said * weight).sum() / weight.sum()
        place = F.cross_entropy(
            self.place(features).flatten(0, 1), torch.arange(NUM_PATCHES).repeat(len(features))
        )
        edges = F.cross_entropy(
            self.edges(features).view(-1, GRID + 1), boxes_BP4.flatten(), ignore_index=_NO_BOX,
            reduction="sum",
        ) / max(1, int((boxes_BP4 != _NO_BOX).sum()))  # fmt: skip
        two_BP2 = scores_BPW.topk(2).indices.sort().values == words_BP2.sort().values
        one_BP = scores_BPW.argmax(-1) == words_BP2[..., 0]
        same = words_BP2[..., 0] == words_BP2[..., 1]
        right = torch.where(same, one_BP, two_BP2.all(-1))[words_BP2[..., 0] > 0]
        return words + 0.1 * place + 0.5 * edges, right.float().mean().item()


def vision_batch(random: Random, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures as (B, 3, 64, 64) of -1 .. 1, and the words and boxes of their patches."""
    drawn = [draw_labelled(random) for _ in range(number)]
    pixels = np.stack([np.asarray(d.picture) for d in drawn])
    pixels_BCHW = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    words = torch.from_numpy(np.stack([d.words_P2 for d in drawn]))
    return pixels_BCHW, words, torch.from_numpy(np.stack([d.boxes_P4 for d in drawn]))
