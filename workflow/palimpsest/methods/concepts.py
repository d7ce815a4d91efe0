"""CORE's router: by concepts, which tasks a question is like, and whether it is to be refused.

(Jin et al., arXiv 2603.21484; `Jin0316/CORE`, train_CBL.py, mm_cbl.py, mini_gpt4.py.) A step's
concept modules (`modulator.py`) are trained before all else, on the embeddings of its examples and
on embeddings of earlier keywords, which are drawn from a Gaussian that was fitted to each.

Keyword k has the relevances of its mean embedding mu, m_k = W mu_k + b where a concept describes k,
else 0, and a task the mean over its keywords, each as often as it has examples, of all W mu_k + b:
W is linear, so these are the means over examples. With c the modulated relevances of a question,
and products over the modalities,

    keyword       s_k = sigmoid(20 (product of cos(c, m_k) - 0.5))
    task          r_t = sigmoid(scale (product of cos(new task, t) - threshold))
    soft gate     beta = max over k of s_k
    hard gate     1 if the maximum of s_k is above 0.3, or if exactly 2 keywords have a cosine above
                  0.4 by image and exactly 2 by instruction; else 0

The hard gate is the released code's. The paper's beta is the largest relevance of a concept; that
it is read from s is inferred. As published, two negative cosines have a positive product. Otherwise
than in the released code, a question is looked at by itself, not in the mean of its batch, and what
its authors tuned by hand, some of it for the first two tasks alone, is left out.

Shapes: N examples, B questions, D width of a modality's embedding, C concepts, K keywords, T tasks,
E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.methods import gaussians
from palimpsest.methods import settings as s
from palimpsest.methods.growth import inherit
from palimpsest.methods.modulator import MODALITIES, ConceptModules

SCALE, THRESHOLD = 20.0, 0.5  # of the similarity to a keyword
CERTAIN, LIKELY, NUM_LIKELY = 0.3, 0.4, 2  # of the hard gate


class Routed(NamedTuple):
    """Where questions go."""

    concepts_BC: Tensor  # modulated relevances, image concepts first: what an ExpertRouter reads
    gates_B: Tensor
    slots_B: Tensor  # place, among the tasks learnt, of the one that has the nearest keyword


class Concepts:
    """The concepts, the keywords and the loads of the tasks learnt so far.

    `state` is empty before the first task. Then it holds, by modality m, `module/<parameter>` of
    the concept modules, `owned/m` owned_KC, `mean/m` mu_KD and `covariance/m`, KDD; of each
    keyword `count`, its examples, and `slot`, its task; and `loads`, TE, as `note` was told them.
    """

    def __init__(self, settings: s.Concepts, state: Mapping[str, Tensor]) -> None:
        self.settings, self.state = settings, dict(state)

    def learn(
        self,
        queries: Mapping[str, Tensor],
        keyword_N: Tensor,
        embeddings: Mapping[str, Tensor],
        owned: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        """Add a new task, from the embeddings q_ND of its examples, `image` and `instruction`.

        `keyword_N` counts the keywords of all tasks, oldest first. `embeddings` e_CD and `owned`
        owned_KC are of the concepts of all tasks: see `modulator.vocabulary`.

        Raises ValueError if an example has no new keyword, or a new keyword no example.
        """
        num_old, num = len(self.state.get("count", ())), len(owned["image"])
        count_K = keyword_N.bincount(minlength=num)
        if len(count_K) > num or count_K[:num_old].any() or not count_K[num_old:].all():
            raise ValueError(
                f"concepts: the examples of a task must have its keywords, {num_old} to {num - 1}, "
                f"and each of these an example; found are {keyword_N.unique().tolist()}"
            )
        generator = torch.Generator().manual_seed(seed)
        queries = asked = _unit(queries)
        asked_N = keyword_N
        if num_old:
            drawn, drawn_M = self._drawn(self.settings.drawn, generator)
            asked = {m: torch.cat([queries[m], drawn[m]]) for m in MODALITIES}
            asked_N = torch.cat([keyword_N, drawn_M])
        modules = self._modules({m: queries[m].shape[1] for m in MODALITIES}, owned, seed)
        self._train(modules, asked, asked_N, _unit(embeddings), generator)
        self.state |= {f"module/{name}": p.detach() for name, p in modules.named_parameters()}
        self.state |= {f"owned/{m}": owned[m] for m in MODALITIES}
        new = {"count": count_K[num_old:], "slot": torch.full((num - num_old,), self.num_tasks)}
        for m in MODALITIES:
            fits = [gaussians.fitted(queries[m][keyword_N == k]) for k in range(num_old, num)]
            new[f"mean/{m}"], new[f"covariance/{m}"] = map(torch.stack, zip(*fits, strict=True))
        for name, tensor in new.items():
            self._append(name, tensor)

    def note(self, load_E: Tensor) -> None:
        """Add the load of the task learnt last: see `experts.load`."""
        self._append("loads", load_E[None])

    @property
    def num_tasks(self) -> int:
        """How many tasks have been learnt."""
        return int(self.state["slot"].max()) + 1 if "slot" in self.state else 0

    @property
    def loads(self) -> Tensor:
        """The loads of the tasks noted so far, loads_TE; of none before the first."""
        return self.state.get("loads", torch.zeros(0, 1, dtype=torch.long))

    @property
    def sizes(self) -> tuple[int, int]:
        """How many image and text concepts there are."""
        image, text = (self.state[f"owned/{m}"].shape[1] for m in MODALITIES)
        return image, text

    @torch.no_grad()
    def similarities(self) -> Tensor:
        """Return r_T of the task learnt last with each earlier one, oldest first."""
        count_KT = F.one_hot(self.state["slot"]) * self.state["count"][:, None]
        means = self._trained()(self._means())
        sums = {m: count_KT.float().T @ c_KC for m, c_KC in means.items()}  # cosines know no length
        near_T = prod(F.cosine_similarity(x_TC[-1], x_TC[:-1], dim=-1) for x_TC in sums.values())
        return torch.sigmoid(self.settings.task_scale * (near_T - self.settings.task_threshold))

    @torch.no_grad()
    def route(self, queries: Mapping[str, Tensor]) -> Routed:
        """Return where questions go, by their embeddings q_BD, `image` and `instruction`.

        The embedding of an image may be zeros, where there is no picture.
        """
        modules = self._trained()
        concepts = modules.modulated(modules(_unit(queries)))
        own = {m: c_KC * modules.owned[m] for m, c_KC in modules(self._means()).items()}
        near = [F.normalize(concepts[m]) @ F.normalize(own[m]).T for m in MODALITIES]
        nearest = prod(near).max(-1)
        gates_B = torch.sigmoid(SCALE * (nearest.values - THRESHOLD))
        if self.settings.gate == "hard":
            likely_B = prod((near_BK > LIKELY).sum(-1) == NUM_LIKELY for near_BK in near)
            gates_B = ((gates_B > CERTAIN) | likely_B.bool()).float()
        return Routed(_joined(concepts), gates_B, self.state["slot"][nearest.indices])

    @torch.no_grad()
    def replayed(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return concepts_NC of embeddings drawn for every keyword, and loads_NE of their tasks."""
        generator = torch.Generator().manual_seed(seed)
        queries, keyword_N = self._drawn(self.settings.replay.drawn, generator)
        modules = self._trained()
        loads_NE = self.loads[self.state["slot"][keyword_N]]
        return _joined(modules.modulated(modules(queries))), loads_NE

    def _train(
        self,
        modules: ConceptModules,
        queries: Mapping[str, Tensor],
        keyword_N: Tensor,
        embeddings: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        optimiser = torch.optim.Adam(modules.parameters(), lr=self.settings.learning_rate)
        for _ in range(self.settings.epochs):
            order_N = torch.randperm(len(keyword_N), generator=generator)
            for rows_B in order_N.split(self.settings.batch):
                batch = {m: q_ND[rows_B] for m, q_ND in queries.items()}
                optimiser.zero_grad()
                modules.loss(batch, keyword_N[rows_B], embeddings).backward()
                optimiser.step()

    def _drawn(self, num: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return embeddings q_ND by modality, `num` of each keyword, and their keywords."""
        queries = {}
        for m in MODALITIES:
            fits = zip(self.state[f"mean/{m}"], self.state[f"covariance/{m}"], strict=True)
            queries[m] = torch.cat([gaussians.drawn(*fit, num, generator) for fit in fits])
        return queries, torch.arange(len(self.state["count"])).repeat_interleave(num)

    def _modules(
        self, widths: Mapping[str, int], owned: Mapping[str, Tensor], seed: int
    ) -> ConceptModules:
        """Return concept modules with what has been learnt; what is new depends on the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            modules = ConceptModules(widths, owned)
        learnt = {n: tensor for n, tensor in self.state.items() if n.startswith("module/")}
        inherit(modules, {n.removeprefix("module/"): tensor for n, tensor in learnt.items()})
        return modules

    def _trained(self) -> ConceptModules:
        owned = {m: self.state[f"owned/{m}"] for m in MODALITIES}
        return self._modules({m: mu_KD.shape[1] for m, mu_KD in self._means().items()}, owned, 0)

    def _means(self) -> dict[str, Tensor]:
        return {m: self.state[f"mean/{m}"] for m in MODALITIES}

    def _append(self, name: str, tensor: Tensor) -> None:
        self.state[name] = torch.cat([self.state.get(name, tensor[:0]), tensor])


def _joined(concepts: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([concepts[m] for m in MODALITIES], dim=-1)


def _unit(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {m: F.normalize(x[m], dim=-1) for m in MODALITIES}
