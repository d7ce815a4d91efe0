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

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.methods import experts, gaussians, router
from palimpsest.methods.growth import inherit
from palimpsest.methods.modulator import MODALITIES, ConceptModules, vocabulary
from palimpsest.methods.refusers import Mixture

SCALE, THRESHOLD = 20.0, 0.5  # of the similarity to a keyword
CERTAIN, LIKELY, NUM_LIKELY = 0.3, 0.4, 2  # of the hard gate
OF_ROUTER = "router."  # what the names of the parameters of a mixture's own router begin with


class Concepts(router.Router):
    """The concepts, the keywords and the loads of the tasks learnt so far.

    `state` is empty before the first task. Then it holds, by modality m, `module/<parameter>` of
    the concept modules, `owned/m` owned_KC, `mean/m` mu_KD and `covariance/m`, KDD; of each
    keyword `keyword/<name>`, its number k, `count`, its examples, and `slot`, its task; and
    `loads`, TE.
    """

    aligned = True

    def learn(self, asked: router.Asked, seed: int) -> None:
        """Add a new task, whose keywords are counted in the order of the alphabet.

        Image concepts for which the model has no words are prototypes, which is ours: the mean
        query of the examples of the keywords that a concept describes.

        Raises ValueError if an example has no keyword, or one that no concept describes, or that an
        earlier task had.
        """
        num_old, num_tasks = len(self.state.get("count", ())), self.num_tasks
        names = [*self._keywords(), *self._new(asked)]
        number = {name: k for k, name in enumerate(names)}
        keyword_N = torch.tensor([number[name] for name in asked.keywords])
        queries = _unit(asked.queries)
        generator = torch.Generator().manual_seed(seed)
        samples, sampled_N = queries, keyword_N
        if num_old:
            drawn, drawn_N = self._drawn(self.settings.drawn, generator)
            samples = {m: torch.cat([queries[m], drawn[m]]) for m in MODALITIES}
            sampled_N = torch.cat([keyword_N, drawn_N])
        self.state |= {f"keyword/{name}": torch.tensor(k) for name, k in number.items()}
        self._append("count", keyword_N.bincount()[num_old:])
        self._append("slot", torch.full((len(names) - num_old,), num_tasks))
        for m in MODALITIES:
            new = range(num_old, len(names))
            fits = [gaussians.fitted(queries[m][keyword_N == k]) for k in new]
            for name, tensors in zip(("mean", "covariance"), zip(*fits, strict=True), strict=True):
                self._append(f"{name}/{m}", torch.stack(tensors))
        embeddings = {m: self._described(m, names, asked) for m in MODALITIES}
        modules = self._trained(seed)
        self._train(modules, samples, sampled_N, embeddings, generator)
        self.state |= {f"module/{name}": p.detach() for name, p in modules.named_parameters()}

    def begin(self, mixture: Mixture, seed: int) -> None:
        """See `Router.begin`: the experts' own router grows, and some experts are held."""
        mixture.widen(self.sizes, seed)
        mixture.begin(self.loads, self.similarities())

    def beside(self, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Router.beside`."""
        return {"concepts": self.route(queries).told["concepts"]}

    def settle(
        self,
        mixture: Mixture,
        learnt: Mapping[str, Tensor],
        beside: Mapping[str, Tensor],
        seed: int,
    ) -> dict[str, Tensor]:
        """See `Router.settle`: the task's load, and the replay by which the router keeps others."""
        of_router = {name for name in learnt if name.startswith(OF_ROUTER)}
        state = {name.removeprefix(OF_ROUTER): learnt[name] for name in of_router}
        chooser = experts.initialised(mixture.settings, self.sizes, state, seed)
        num_examples = self.state["count"][self.state["slot"] == self.num_tasks - 1].sum()
        with torch.no_grad():
            logits_NE = chooser(beside["concepts"][:num_examples])
        self._append("loads", experts.load(logits_NE, mixture.settings.top)[None])
        if self.num_tasks > 1:
            experts.replay(chooser, *self.replayed(seed), self.settings.replay, seed)
        return {OF_ROUTER + name: p.detach() for name, p in chooser.named_parameters()}

    @property
    def num_tasks(self) -> int:
        """How many tasks have been learnt."""
        return int(self.state["slot"].max()) + 1 if "slot" in self.state else 0

    @property
    def loads(self) -> Tensor:
        """The loads of the tasks that have been settled, loads_TE."""
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
    def route(self, queries: Mapping[str, Tensor]) -> router.Routed:
        """See `Router.route`: a question goes to the task that has the nearest keyword.

        What is told are its modulated relevances, image concepts first, and its gate.
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
        ago_B = self.num_tasks - 1 - self.state["slot"][nearest.indices]
        return router.Routed(ago_B, {"concepts": _joined(concepts), "gates": gates_B})

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

    def _keywords(self) -> list[str]:
        """Return the keywords of the tasks learnt so far, in their order."""
        numbers = {n: int(k) for n, k in self.state.items() if n.startswith("keyword/")}
        return [name.removeprefix("keyword/") for name in sorted(numbers, key=numbers.get)]

    def _new(self, asked: router.Asked) -> list[str]:
        """Return the keywords of a task to come."""
        new = sorted(set(asked.keywords))
        for name in new:
            if f"keyword/{name}" in self.state:
                raise ValueError(f"concepts: an earlier task had keyword {name!r}")
            if name not in asked.described:
                raise ValueError(
                    f"config/concepts/{self.settings.described}.yaml: no concept describes keyword "
                    f"{name!r}, which examples of the task have; known are {[*asked.described]}"
                )
        return new

    def _described(self, modality: str, names: list[str], asked: router.Asked) -> Tensor:
        """Note which concepts of a modality keywords own, and return their embeddings e_CD."""
        texts, owned_KC = vocabulary([asked.described[name][modality] for name in names])
        self.state[f"owned/{modality}"] = owned_KC
        e_CD = asked.embedded(modality, texts)
        if e_CD is None:
            share_KC = owned_KC * self.state["count"][:, None]
            e_CD = share_KC.float().T @ self.state[f"mean/{modality}"]
        return F.normalize(e_CD, dim=-1)

    def _trained(self, seed: int = 0) -> ConceptModules:
        """Return concept modules with what has been learnt; what is new depends on the seed."""
        widths = {m: mu_KD.shape[1] for m, mu_KD in self._means().items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            modules = ConceptModules(widths, {m: self.state[f"owned/{m}"] for m in MODALITIES})
        learnt = {n: tensor for n, tensor in self.state.items() if n.startswith("module/")}
        inherit(modules, {n.removeprefix("module/"): tensor for n, tensor in learnt.items()})
        return modules

    def _means(self) -> dict[str, Tensor]:
        return {m: self.state[f"mean/{m}"] for m in MODALITIES}

    def _append(self, name: str, tensor: Tensor) -> None:
        self.state[name] = torch.cat([self.state.get(name, tensor[:0]), tensor])


def _joined(concepts: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([concepts[m] for m in MODALITIES], dim=-1)


def _unit(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {m: F.normalize(x[m], dim=-1) for m in MODALITIES}
