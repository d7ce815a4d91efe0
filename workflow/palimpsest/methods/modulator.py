"""CORE's concept modules and modulator: how relevant concepts are to a picture and its question.

(Jin et al., arXiv 2603.21484; `Jin0316/CORE`, minigpt4/models/mm_cbl.py and train_CBL.py.) Each
keyword k to be refused is described by image concepts and by text concepts. With q_m the embedding
of a picture or an instruction, m = image or instruction, at length 1:

    relevances    c_m = W_m q_m + b_m
    modulator     p = softmax(sum over m of U_m c_m + u), over keywords, and c_m,i is scaled by the
                  sum of p_k over the keywords that concept i describes
    loss          CE(p, k) + L_con,   L_con = - sum over m of cos(c_m^3, t_m^3),
                  t_m,i = q_m . (embedding of concept i) where i describes k, else 0

The cubes are the released code's. Its representative embeddings of keywords, whose loss has weight
0.1, are left out: they are drawn to the embeddings of examples, and nothing reads them.

Shapes: B examples, D width of a modality's embedding, C concepts, K keywords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODALITIES = ("image", "instruction")  # of the embeddings, and of their concepts, in this order


class ConceptModules(nn.Module):
    """Relevances and modulator, for embeddings of some widths by modality.

    `owned` has owned_KC of each modality: whether a concept describes a keyword.
    """

    def __init__(self, widths: Mapping[str, int], owned: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.owned = {m: owned_KC.float() for m, owned_KC in owned.items()}
        sizes = {m: owned_KC.shape for m, owned_KC in owned.items()}
        self.relevance = nn.ModuleDict({m: nn.Linear(widths[m], sizes[m][1]) for m in MODALITIES})
        self.evidence = nn.ModuleDict(
            {m: nn.Linear(sizes[m][1], sizes[m][0], bias=False) for m in MODALITIES}
        )
        self.prior = nn.Parameter(torch.zeros(sizes["image"][0]))
        for linear in [*self.relevance.values(), *self.evidence.values()]:
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return c_BC of each modality from its q_BD."""
        return {m: self.relevance[m](queries[m]) for m in MODALITIES}

    def logits(self, concepts: Mapping[str, Tensor]) -> Tensor:
        """Return logits_BK of the keywords."""
        return sum(self.evidence[m](concepts[m]) for m in MODALITIES) + self.prior

    def modulated(self, concepts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return c_BC of each modality, scaled by how probable the keywords of a concept are."""
        probable_BK = self.logits(concepts).softmax(-1)
        return {m: concepts[m] * (probable_BK @ self.owned[m]) for m in MODALITIES}

    def loss(
        self, queries: Mapping[str, Tensor], keyword_B: Tensor, embeddings: Mapping[str, Tensor]
    ) -> Tensor:
        """Return CE + L_con, the mean over a batch; `embeddings` e_CD of concepts have length 1."""
        concepts = self(queries)
        loss = F.cross_entropy(self.logits(concepts), keyword_B)
        for m in MODALITIES:
            target_BC = queries[m] @ embeddings[m].T * self.owned[m][keyword_B]
            loss = loss - F.cosine_similarity(concepts[m] ** 3, target_BC**3, dim=-1).mean()
        return loss


def vocabulary(keywords: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """Return the concepts of keywords, each once, and owned_KC: which keywords they describe.

    They come in the order of their first keyword, so that those of new keywords come last.
    """
    concepts = list(dict.fromkeys(concept for described in keywords for concept in described))
    owned = [[concept in described for concept in concepts] for described in keywords]
    return concepts, torch.tensor(owned)
