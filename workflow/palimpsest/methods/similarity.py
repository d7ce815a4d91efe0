"""How alike tasks are, by their pictures, their instructions and their answers.

He et al. (arXiv 2311.16206), as their released code has it: with c_m(i, j) the cosine of two tasks'
embeddings of modality m, over all pairs i < j,

    s_m(i, j) = sigmoid((c_m(i, j) - mean c_m) / std c_m)    std the unbiased one
    S(i, j)   = product of s_m(i, j) over m

A pair is compared with the other pairs, so what it comes to depends on which tasks there are; one
that is average in all three has S = 0.125. Where there is only one pair there is nothing to compare
with: s_m is the raw cosine, far larger than later ones, or negative, which a regulariser takes for
0. Unlike in the released code, whose mask drops them, pairs whose value is exactly 0 are kept.

Shapes: T tasks or steps, E the width of a modality's embedding, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MODALITIES = ("image", "instruction", "answer")
SAME = 1e-6  # cosines that spread less than this are equal: the embeddings are float32


def unit(x_E: np.ndarray) -> np.ndarray:
    """Return a vector at length 1; one of zeros, as of a task without pictures, stays so."""
    return x_E / (np.linalg.norm(x_E) or 1.0)


def joined(x_TE: np.ndarray) -> np.ndarray:
    """Return the embedding of a step that learns T tasks at once: the mean of theirs."""
    return unit(x_TE.mean(0))


def by_modality(embeddings: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return s_TT of each modality from its x_TE, whose rows have length 1; the diagonal is 1."""
    return {name: _compared(x_TE.astype(np.float64)) for name, x_TE in embeddings.items()}


def similarity(embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return S_TT, symmetric with a diagonal of 1, from x_TE of each modality."""
    return np.prod(list(by_modality(embeddings).values()), axis=0)


def to_history(embeddings: Mapping[str, np.ndarray]) -> list[float]:
    """Return the similarity of the last step with each earlier one, oldest first.

    `embeddings` are those of all steps so far and of the new one: the pairs that are compared.
    """
    return similarity(embeddings)[-1, :-1].tolist()


def _compared(x_TE: np.ndarray) -> np.ndarray:
    s_TT = np.eye(len(x_TE))
    above = np.triu_indices(len(x_TE), k=1)
    cosine_P = (x_TE @ x_TE.T)[above]
    if len(cosine_P) > 1:
        spread = cosine_P.std(ddof=1)
        z_P = (cosine_P - cosine_P.mean()) / spread if spread > SAME else np.zeros_like(cosine_P)
        cosine_P = 1 / (1 + np.exp(-z_P))
    s_TT[above] = s_TT.T[above] = cosine_P
    return s_TT
