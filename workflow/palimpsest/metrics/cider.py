"""CIDEr: how much a caption agrees with what several people wrote, by words that say something.

Vedantam et al. 2015 (arXiv 1411.5726), in the form CIDEr-D that `Cider` of the official evaluation
of COCO captions computes: n-grams of 1 to 4 words, each weighted by how often it is in the caption
and by log(pictures) - log(pictures in whose references it is); for each n the cosine of caption and
reference, where a weight counts no further than the reference's, times exp(-(difference in
length)² / (2 · 6²)); the mean over n and over the references, times 10.

The pictures are all those of the cell, so a score depends on the split that is evaluated: with a
single picture every weight is 0. A score lies between 0 and 10, and captions that people write are
at about 1: in percent, as papers print it, a cell can be above 100. Captions are taken apart as the
official tool does it (`tokenisers/ptb.py`), so this is also what released scorers give.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from palimpsest.metrics import Scored
from palimpsest.metrics.tokenisers import ptb

VERSION = "1"
LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words
SCALE = 10.0

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class Frequencies:
    """In the references of how many pictures each n-gram is."""

    pictures: int
    having: Counter[Ngram]

    def weight(self, ngram: Ngram) -> float:
        """Return what an n-gram says; most if it is in no reference."""
        return math.log(self.pictures) - math.log(max(1, self.having[ngram]))


@dataclass(frozen=True)
class Caption:
    """The weighted n-grams of a caption, by their length from 1, and its number of words."""

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    length: int


def prepare(references: Iterable[tuple[str, ...]]) -> Frequencies:
    """Return the frequencies in all references of a cell, given picture by picture."""
    having: Counter[Ngram] = Counter()
    pictures = 0
    for captions in references:
        pictures += 1
        having.update({ngram for text in captions for ngram in _ngrams(ptb.words(text))})
    return Frequencies(pictures, having)


def score(prediction: str, example: Scored, frequencies: Frequencies) -> float:
    """Return CIDEr-D, from 0 to 10, of a caption against the references of its picture."""
    caption = _weighted(prediction, frequencies)
    agreed = [_agreement(caption, _weighted(text, frequencies)) for text in example.references]
    return SCALE * sum(agreed) / len(agreed)


def _agreement(caption: Caption, reference: Caption) -> float:
    """Return the mean over n of the clipped cosines, less what a difference in length takes."""
    penalty = math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
    cosines = map(_cosine, caption.weights, caption.norms, reference.weights, reference.norms)
    return penalty * sum(cosines) / LONGEST


def _cosine(
    weights: dict[Ngram, float], norm: float, others: dict[Ngram, float], other_norm: float
) -> float:
    if not norm or not other_norm:
        return 0.0
    shared = weights.keys() & others.keys()
    return sum(min(weights[n], others[n]) * others[n] for n in sorted(shared)) / (norm * other_norm)


def _weighted(text: str, frequencies: Frequencies) -> Caption:
    words = ptb.words(text)
    weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(LONGEST))
    for ngram, count in Counter(_ngrams(words)).items():
        weights[len(ngram) - 1][ngram] = count * frequencies.weight(ngram)
    norms = tuple(math.sqrt(sum(w * w for w in of.values())) for of in weights)
    return Caption(weights, norms, len(words))


def _ngrams(words: list[str]) -> Iterator[Ngram]:
    for n in range(1, LONGEST + 1):
        yield from zip(*(words[k:] for k in range(n)), strict=False)
