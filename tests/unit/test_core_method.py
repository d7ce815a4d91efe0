"""CORE: concepts, refusers and their router against closed forms, on tiny sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

import tiny
from palimpsest.methods import adapter, experts, gaussians, growth, settings
from palimpsest.methods.answers import logits
from palimpsest.methods.concepts import OF_ROUTER, Concepts
from palimpsest.methods.modulator import MODALITIES, ConceptModules, vocabulary
from palimpsest.methods.refusers import Mixture, Refusers
from palimpsest.methods.router import Asked

PROJECTOR = "model.multi_modal_projector"
REFUSERS = settings.Refusers(
    name="refusers", experts=5, top=2, width=8, heads=2, dropout=0.1, temperature=0.5
)
CONCEPTS = settings.Concepts(
    name="concepts",
    described="kitchen",
    epochs=12,
    learning_rate=0.1,
    batch=16,
    drawn=16,
    task_scale=1.0,
    task_threshold=0.0,
    gate="soft",
    replay=settings.Replay(drawn=10, epochs=6, learning_rate=0.03, batch=16),
)
WIDTHS = {"image": 10, "instruction": 8}
# Two tasks of two keywords, two concepts a modality and keyword, one of them shared.
DESCRIBED = {
    "image": [["handle", "blade"], ["handle", "bowl"], ["spout", "lid"], ["wheel", "tooth"]],
    "instruction": [["cut", "how"], ["scoop", "where"], ["pour", "when"], ["open", "why"]],
}
KEYWORDS = ["knife", "ladle", "can", "opener"]
EXAMPLES = 16  # of each keyword
KEYWORD_N = torch.arange(2).repeat_interleave(EXAMPLES)
LOADS = torch.tensor([[0, 7, 7, 0, 0], [9, 0, 0, 9, 0]])
RNG = np.random.default_rng(0)


def noise(*sizes, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def embedded(num_keywords):
    """Embeddings of the concepts of the first keywords, e_CD, and who owns them, by modality."""
    found = {m: vocabulary(DESCRIBED[m][:num_keywords]) for m in MODALITIES}
    embeddings = {m: noise(20, WIDTHS[m])[: len(names)] for m, (names, _) in found.items()}
    return embeddings, {m: owned_KC for m, (_, owned_KC) in found.items()}


def asked(task, seed=0):
    """Queries of a task's examples: near the sum of their keyword's concepts, at odd lengths."""
    embeddings, owned = embedded(2 * task + 2)
    queries = {}
    for n, m in enumerate(MODALITIES):
        centre_KD = F.normalize(owned[m].float() @ F.normalize(embeddings[m], dim=-1), dim=-1)
        x_ND = centre_KD[KEYWORD_N + 2 * task] + 0.05 * noise(32, WIDTHS[m], seed=seed + n)
        queries[m] = x_ND * (1 + noise(32, 1, seed=seed).square())
    return queries


def step(task, keywords=KEYWORDS, words=True):
    """What a task asks; its keywords come in the order in which `Concepts` counts them."""

    def embedded(m, texts):
        return noise(20, WIDTHS[m])[: len(texts)] if words or m == "instruction" else None

    described = {k: {m: DESCRIBED[m][n] for m in MODALITIES} for n, k in enumerate(KEYWORDS)}
    return Asked(asked(task), [keywords[k + 2 * task] for k in KEYWORD_N], described, embedded)


def learn(concepts, task, seed=0, words=True):
    concepts.learn(step(task, words=words), seed)
    concepts.state["loads"] = torch.cat([concepts.loads.reshape(-1, 5), LOADS[task][None]])


@pytest.fixture(scope="module")
def first():
    concepts = Concepts(CONCEPTS, {})
    learn(concepts, 0)
    return concepts


@pytest.fixture(scope="module")
def learnt(first):
    concepts = Concepts(CONCEPTS, first.state)
    learn(concepts, 1)
    return concepts


def at(concepts, **changes):
    """The same state with other settings."""
    return Concepts(CONCEPTS.model_copy(update=changes), concepts.state)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# The concepts


def test_a_vocabulary_has_each_concept_once_and_grows_at_its_end():
    names, owned_KC = vocabulary(DESCRIBED["image"])
    assert names == ["handle", "blade", "bowl", "spout", "lid", "wheel", "tooth"]
    assert owned_KC[:2].int().tolist() == [[1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0]]
    fewer, part_KC = vocabulary(DESCRIBED["image"][:2])
    assert names[: len(fewer)] == fewer
    assert torch.equal(owned_KC[:2, :3], part_KC)


def by_hand(modules, queries):
    """c and p of the docstring, in numpy."""
    own = {n: p.detach().double().numpy() for n, p in modules.named_parameters()}
    c = {
        m: queries[m].double().numpy() @ own[f"relevance.{m}.weight"].T + own[f"relevance.{m}.bias"]
        for m in MODALITIES
    }
    p_BK = softmax(sum(c[m] @ own[f"evidence.{m}.weight"].T for m in MODALITIES) + own["prior"])
    return c, p_BK


def some_modules():
    torch.manual_seed(0)
    _, owned = embedded(4)
    modules = ConceptModules(WIDTHS, owned)
    for n, parameter in enumerate(modules.parameters()):
        parameter.data += 0.3 * noise(*parameter.shape, seed=n)
    return modules, owned


def test_the_modulator_and_its_loss_are_their_equations():
    modules, owned = some_modules()
    queries = {m: F.normalize(noise(6, WIDTHS[m], seed=3), dim=-1) for m in MODALITIES}
    embeddings = {m: F.normalize(e_CD, dim=-1) for m, e_CD in embedded(4)[0].items()}
    keyword_B = torch.tensor([0, 1, 2, 3, 1, 0])
    c, p_BK = by_hand(modules, queries)
    loss_B = -np.log(p_BK[range(6), keyword_B])
    for m in MODALITIES:
        owned_KC = owned[m].double().numpy()
        found = modules.modulated(modules(queries))[m]
        assert_close(found.double(), torch.tensor(c[m] * (p_BK @ owned_KC)), rtol=1e-4, atol=1e-6)
        target = queries[m].double().numpy() @ embeddings[m].double().numpy().T
        target = target * owned_KC[keyword_B]
        loss_B -= (unit(c[m] ** 3) * unit(target**3)).sum(axis=1)
    loss = modules.loss(queries, keyword_B, embeddings)
    assert loss.item() == pytest.approx(loss_B.mean(), rel=1e-4)


def test_questions_find_the_task_of_their_keyword_and_others_no_gate(learnt):
    for gate in ("soft", "hard"):
        for task in (0, 1):
            routed = at(learnt, gate=gate).route(asked(task, seed=7))
            assert routed.ago_B.tolist() == [1 - task] * 32
            assert routed.told["gates"].min() > 0.9
            assert routed.told["concepts"].shape == (32, sum(learnt.sizes))
    other = {"image": asked(0)["image"], "instruction": -asked(0)["instruction"]}
    assert at(learnt, gate="hard").route(other).told["gates"].tolist() == [0] * 32
    assert learnt.route(other).told["gates"].max() < 0.01


def test_a_route_is_its_equations(learnt):
    queries = {m: noise(40, WIDTHS[m], seed=5) for m in MODALITIES}  # of nothing in particular
    modules = learnt._trained()
    c, p_BK = by_hand(modules, {m: F.normalize(q, dim=-1) for m, q in queries.items()})
    own, _ = by_hand(modules, {m: learnt.state[f"mean/{m}"] for m in MODALITIES})
    scaled, near = {}, {}
    for m in MODALITIES:
        owned_KC = learnt.state[f"owned/{m}"].double().numpy()
        scaled[m] = c[m] * (p_BK @ owned_KC)
        near[m] = unit(scaled[m]) @ unit(own[m] * owned_KC).T
    s_BK = sigmoid(20 * (near["image"] * near["instruction"] - 0.5))
    two = [(near[m] > 0.4).sum(axis=1) == 2 for m in MODALITIES]
    hard_B = (s_BK.max(axis=1) > 0.3) | (two[0] & two[1])
    soft, hard = learnt.route(queries), at(learnt, gate="hard").route(queries)
    concepts_BC = np.concatenate([scaled[m] for m in MODALITIES], axis=1)
    assert_close(soft.told["concepts"].double(), torch.tensor(concepts_BC), rtol=1e-3, atol=1e-5)
    gates_B = soft.told["gates"].double()
    assert_close(gates_B, torch.tensor(s_BK.max(axis=1)), rtol=1e-3, atol=1e-5)
    assert torch.equal(learnt.beside(queries)["concepts"], soft.told["concepts"])
    clear_B = s_BK.max(axis=1) > 0.01  # elsewhere nothing is near, and the nearest is chance
    wanted_B = (near["image"] * near["instruction"]).argmax(axis=1) // 2
    assert (1 - soft.ago_B[clear_B]).tolist() == wanted_B[clear_B].tolist()
    assert set(wanted_B[clear_B].tolist()) == {0, 1}
    assert hard.told["gates"].tolist() == hard_B.astype(float).tolist()
    assert 0 < hard_B.sum() < 40


def test_routes_know_no_batch_mates(learnt):
    queries = {m: noise(9, WIDTHS[m], seed=5) for m in MODALITIES}
    together = learnt.route(queries)
    for row in range(9):
        alone = learnt.route({m: q[row : row + 1] for m, q in queries.items()})
        assert alone.ago_B[0] == together.ago_B[row]
        for name, told in together.told.items():
            assert_close(alone.told[name][0], told[row], rtol=1e-5, atol=1e-6)


def test_tasks_are_as_similar_as_the_mean_relevances_of_their_examples(first, learnt):
    modules, near = learnt._trained(), 1.0
    for m in MODALITIES:
        tasks = [by_hand(modules, {n: F.normalize(q, dim=-1) for n, q in asked(t).items()})[0][m]
                 for t in (0, 1)]  # fmt: skip
        one, other = (unit(c_NC.mean(axis=0)) for c_NC in tasks)
        near *= one @ other
    for scale, threshold in ((1.0, 0.0), (100.0, 0.05)):
        (found,) = at(learnt, task_scale=scale, task_threshold=threshold).similarities()
        assert found.item() == pytest.approx(sigmoid(scale * (near - threshold)), rel=1e-2)
    assert first.similarities().tolist() == []


def test_old_keywords_stay_what_their_gaussians_say(first, learnt):
    """So they do if the two Gaussians of a task are exchanged, which no example knows of."""
    exchanged = Concepts(CONCEPTS, first.state)
    for name in ("mean", "covariance"):
        for m in MODALITIES:
            exchanged.state[f"{name}/{m}"] = first.state[f"{name}/{m}"].flip(0)
    learn(exchanged, 1)
    for concepts, wanted_N in ((learnt, KEYWORD_N), (exchanged, 1 - KEYWORD_N)):
        modules, queries = concepts._trained(), asked(0, seed=7)
        logits_NK = modules.logits(modules({m: F.normalize(q) for m, q in queries.items()}))
        assert logits_NK.argmax(-1).tolist() == wanted_N.tolist()


def test_concepts_are_a_function_of_the_seed_and_leave_the_models_noise_alone():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        concepts = Concepts(CONCEPTS.model_copy(update={"epochs": 1}), {})
        learn(concepts, 0, seed)
        concepts.route(asked(0))
        found.append((concepts.state, torch.rand(1).item()))
    (one, drawn), (same, again), (other, _) = found
    assert drawn == again
    assert_close(one, same, rtol=0, atol=0)
    name = "module/relevance.image.weight"
    assert not torch.equal(one[name], other[name])


def test_a_state_goes_through_a_file(learnt, tmp_path):
    save_file(learnt.state, tmp_path / "router.safetensors")
    again = Concepts(CONCEPTS, load_file(tmp_path / "router.safetensors"))
    assert (again.num_tasks, again.sizes) == (2, (7, 8))
    assert torch.equal(again.loads, LOADS)
    assert again.state["count"].tolist() == [EXAMPLES] * 4
    assert_close(again.route(asked(1)), learnt.route(asked(1)), rtol=0, atol=0)
    for one, same in zip(again.replayed(3), learnt.replayed(3), strict=True):
        assert torch.equal(one, same)


def test_keywords_of_which_nothing_is_known_are_refused(first):
    """And so are those of an earlier task; nothing is then learnt."""
    for keywords, found in (
        ([*"ab", "can", ""], "concepts/kitchen.yaml: no concept describes keyword ''.* known are"),
        ([*"ab", "can", "knife"], "an earlier task had keyword 'knife'"),
    ):
        before = dict(first.state)
        with pytest.raises(ValueError, match=found):
            first.learn(step(1, keywords), seed=0)
        assert first.state.keys() == before.keys()
        assert all(first.state[name] is tensor for name, tensor in before.items())


def test_image_concepts_without_words_are_the_mean_pictures_of_what_they_describe(first):
    """Of an old keyword as of a new one: its mean and how many examples it had are kept."""
    seen = []

    class Watched(Concepts):
        def _train(self, modules, queries, keyword_N, embeddings, generator):
            seen.append(embeddings)

    concepts = Watched(CONCEPTS, {})
    learn(concepts, 0, words=False)
    learn(concepts, 1, words=False)
    means = [[F.normalize(asked(t)["image"], dim=-1)[k == KEYWORD_N].mean(0) for k in (0, 1)]
             for t in (0, 1)]  # fmt: skip
    handle, blade, bowl, spout = seen[1]["image"][:4]
    assert_close(seen[0]["image"], torch.stack([handle, blade, bowl]))
    wanted = [means[0][0] + means[0][1], means[0][0], means[0][1], means[1][0]]
    for found, mean in zip((handle, blade, bowl, spout), wanted, strict=True):
        assert_close(found, F.normalize(mean, dim=-1))
    assert_close(seen[0]["instruction"], F.normalize(noise(20, 8)[:4], dim=-1))


def test_what_is_learnt_is_settled_by_its_load_and_the_replay_of_all_tasks():
    concepts, mixture = Concepts(CONCEPTS, {}), Mixture(REFUSERS, torch.nn.Linear(3, 4))
    for task in (0, 1):
        concepts.learn(step(task), seed=task)
        concepts.begin(mixture, seed=task)
        assert mixture.router.sizes == concepts.sizes
        assert mixture.loads_TE.shape[0] == len(mixture.similar_T) == task
        held = {n for n, e in enumerate(mixture.experts) if not next(e.parameters()).requires_grad}
        assert held == ({int(concepts.loads[0].argmax())} if task else set())
        beside = concepts.beside({m: torch.cat([q, q[:5]]) for m, q in asked(task).items()})
        learnt = {n: p.detach().clone() for n, p in mixture.named_parameters()}
        changed = concepts.settle(mixture, learnt, beside, seed=3)
        load_E = experts.load(mixture.router.eval()(beside["concepts"][:32]), REFUSERS.top)
        assert torch.equal(concepts.loads[-1], load_E)
        assert concepts.loads.shape == (task + 1, 5)
        names = {n for n in learnt if n.startswith(OF_ROUTER)}
        assert changed.keys() == names
        if task == 0:  # there is nothing that it could have forgotten
            assert all(torch.equal(changed[n], learnt[n]) for n in names)
        else:
            wanted = experts.initialised(REFUSERS, concepts.sizes, mixture.router.state_dict(), 0)
            experts.replay(wanted, *concepts.replayed(3), CONCEPTS.replay, 3)
            assert_close(changed, {OF_ROUTER + n: p.detach() for n, p in wanted.named_parameters()},
                         rtol=0, atol=0)  # fmt: skip


def test_gaussians_have_the_mean_and_the_covariance_that_they_were_fitted_to():
    x_ND = (noise(60, 4) @ noise(4, 4, seed=1)).double() + torch.tensor([1.0, 2.0, 3.0, 4.0])
    mean_D, covariance_DD = gaussians.fitted(x_ND)
    assert_close(mean_D.double(), x_ND.mean(0))
    wanted_DD = torch.tensor(np.cov(x_ND.numpy().T))
    assert_close(covariance_DD.double(), wanted_DD, rtol=1e-5, atol=1e-6)
    drawn_ND = gaussians.drawn(
        mean_D, covariance_DD, 200_000, torch.Generator().manual_seed(0)
    ).double()
    assert_close(drawn_ND.mean(0), x_ND.mean(0), rtol=0, atol=0.03)
    assert_close(torch.tensor(np.cov(drawn_ND.numpy().T)), wanted_DD, rtol=0.02, atol=0.05)


def test_a_gaussian_of_fewer_examples_than_dimensions_can_be_drawn_from():
    for num in (1, 3):
        x_ND = noise(num, 20)
        drawn_ND = gaussians.drawn(*gaussians.fitted(x_ND), 500, torch.Generator().manual_seed(0))
        basis = torch.linalg.svd(x_ND - x_ND.mean(0), full_matrices=False).Vh[: num - 1]
        apart_ND = drawn_ND - x_ND.mean(0)
        outside_ND = apart_ND - apart_ND @ basis.T @ basis
        assert outside_ND.abs().max() < 0.01
        assert (apart_ND.abs().max().item() > 1) is (num > 1)


def test_what_is_replayed_has_the_loads_of_its_keywords_tasks(learnt):
    concepts_NC, loads_NE = learnt.replayed(0)
    assert concepts_NC.shape == (4 * 10, 15)
    assert torch.equal(loads_NE, LOADS.repeat_interleave(20, dim=0))
    image_KC = concepts_NC[:, :7].reshape(4, 10, 7).mean(1)
    owned_KC = learnt.state["owned/image"]
    assert image_KC.argmax(-1).tolist() == (image_KC * owned_KC).argmax(-1).tolist()


# The router


def router(sizes=(4, 3), seed=0):
    return experts.initialised(REFUSERS, sizes, {}, seed)


def attention(x_LW, module):
    """Multi-head self-attention of one sequence, in numpy."""
    own = {n: p.detach().double().numpy() for n, p in module.named_parameters()}
    q, k, v = np.split(x_LW @ own["in_proj_weight"].T + own["in_proj_bias"], 3, axis=1)
    heads = []
    for part in np.split(np.arange(REFUSERS.width), REFUSERS.heads):
        scores = q[:, part] @ k[:, part].T / np.sqrt(len(part))
        heads.append(softmax(scores) @ v[:, part])
    return np.concatenate(heads, axis=1) @ own["out_proj.weight"].T + own["out_proj.bias"]


def test_the_router_is_two_tokens_that_attend_to_each_other():
    one = router()
    concepts_BC = noise(5, 7, seed=1)
    own = {n: p.detach().double().numpy() for n, p in one.named_parameters()}
    found_BE = one(concepts_BC)
    for c_C, found_E in zip(concepts_BC.double().numpy(), found_BE, strict=True):
        x_LW = np.stack([
            own["tokens.0.weight"] @ c_C[:4] + own["tokens.0.bias"],
            own["tokens.1.weight"] @ c_C[4:] + own["tokens.1.bias"],
        ])  # fmt: skip
        for module in one.attention:
            x_LW = x_LW + attention(x_LW, module)
            x_LW = x_LW - x_LW.mean(axis=1, keepdims=True)
            x_LW = x_LW / np.sqrt((x_LW**2).mean(axis=1, keepdims=True) + 1e-5)
        wanted_E = own["output.weight"] @ x_LW.mean(axis=0) + own["output.bias"]
        assert_close(found_E.double(), torch.tensor(wanted_E), rtol=1e-4, atol=1e-5)


def test_shares_are_the_softmax_of_the_largest_two():
    logits_BE = torch.tensor([[1.0, 3.0, 2.0, -1.0], [5.0, 0.0, 5.0, 1.0]])
    shares_BE = experts.shares(logits_BE, 2)
    first = 1 / (1 + np.exp(-1))
    assert_close(shares_BE, torch.tensor([[0, first, 1 - first, 0], [0.5, 0, 0.5, 0]]).float())
    many_BE = experts.shares(noise(50, 5), 2)
    assert_close(many_BE.sum(-1), torch.ones(50))
    assert (many_BE > 0).sum(-1).tolist() == [2] * 50
    assert experts.load(logits_BE, 2).tolist() == [1, 1, 2, 0]
    assert experts.load(logits_BE, 1).sum() == 2


def test_the_losses_are_their_equations():
    logits_BE, similar_T = noise(6, 5), torch.tensor([0.2, 0.9])
    x, loads, r = (t.double().numpy() for t in (logits_BE, LOADS, similar_T))
    near = unit(x) @ unit(loads).T / 0.5
    wanted = -(r * np.log(softmax(near))).mean()
    found = experts.recommendation(logits_BE, LOADS, similar_T, 0.5)
    assert found.mean().item() == pytest.approx(wanted, rel=1e-5)
    p, q, w = softmax(x), softmax(6 * (1 - softmax(loads))), (1 - r) / (1 - r).sum()
    entropy = -np.log(p) @ q.T
    wanted = ((unit(p) @ unit(loads).T + 1 + 0.1 * entropy) @ w).mean()
    found = experts.adaptation(logits_BE, LOADS, similar_T)
    assert found.mean().item() == pytest.approx(wanted, rel=1e-5)
    assert experts.adaptation(logits_BE, LOADS, torch.ones(2)).tolist() == [0] * 6


def test_a_similar_task_is_drawn_to_the_old_experts_and_another_away():
    for similar, wanted in ((1.0, {1, 2}), (0.0, {3, 4})):
        similar_T = torch.tensor([similar, 1 - similar])
        x_BE = noise(1, 5).requires_grad_()
        optimiser = torch.optim.Adam([x_BE], lr=0.2)
        for _ in range(80):
            optimiser.zero_grad()
            loads_TE = torch.tensor([[0, 7, 7, 0, 0], [9, 0, 0, 0, 0]])
            loss = experts.recommendation(x_BE, loads_TE, similar_T, 0.5)
            (loss + experts.adaptation(x_BE, loads_TE, similar_T)).sum().backward()
            optimiser.step()
        chosen = set(x_BE.topk(2).indices.flatten().tolist())
        assert chosen == wanted if similar else not chosen & {1, 2}


def test_a_router_replays_what_each_task_used(learnt):
    one = router(learnt.sizes)
    concepts_NC, loads_NE = learnt.replayed(0)
    loads_NE = loads_NE * torch.tensor([1, 2, 1, 1, 1])  # the most used experts: 1, and 0 or 3
    torch.manual_seed(5)
    experts.replay(one, concepts_NC, loads_NE, CONCEPTS.replay, seed=0)
    after = torch.rand(1)
    chosen_N = one(concepts_NC).argmax(-1)
    assert not one.training
    assert chosen_N[:20].tolist() == [1] * 20
    assert set(chosen_N[20:].tolist()) <= {0, 3}
    same = router(learnt.sizes)
    torch.manual_seed(5)
    experts.replay(same, concepts_NC, loads_NE, CONCEPTS.replay, seed=0)
    assert torch.equal(torch.rand(1), after)  # the noise of the model is left alone
    assert_close(dict(same.named_parameters()), dict(one.named_parameters()), rtol=0, atol=0)


def test_a_router_that_grows_keeps_what_it_has_learnt():
    small = router()
    grown = experts.initialised(REFUSERS, (6, 3), small.state_dict(), seed=9)
    c_BC = noise(3, 9)
    c_BC[:, 4:6] = 0  # of the new concepts there is nothing to see
    assert grown.sizes == (6, 3)
    assert_close(grown(c_BC), small(c_BC[:, [0, 1, 2, 3, 6, 7, 8]]))
    assert grown.tokens[0].weight[:, 4:].abs().min() > 0
    linear = torch.nn.Linear(3, 4)
    before = linear.weight.detach().clone()
    growth.inherit(linear, {"weight": torch.ones(2, 2)})
    assert torch.equal(linear.weight[:2, :2], torch.ones(2, 2))
    assert torch.equal(linear.weight[2:], before[2:])
    assert torch.equal(linear.weight[:, 2], before[:, 2])


# The refusers


def attached(dtype=torch.float32, loads=LOADS, differing=True):
    """A tiny LLaVA with refusers, each of other weights, about to learn its third task."""
    part = adapter.build(REFUSERS)
    model = part.attach(tiny.tiny_llava(dtype=dtype), PROJECTOR)
    part.grow(model)
    mixture = part.experts(model)
    mixture.widen((4, 3), seed=0)
    mixture.begin(loads, torch.linspace(0.1, 0.9, len(loads)))
    for seed, expert in enumerate(mixture.experts if differing else ()):
        for n, parameter in enumerate(expert.parameters()):
            parameter.data += 0.5 * noise(*parameter.shape, seed=10 * seed + n)
    return part, model, mixture


TOLD = {"concepts": noise(2, 7), "answers": torch.tensor([5, 2])}


def batch_of(batch=2, dtype=torch.float32):
    found = tiny.tiny_batch(batch)
    return {**found, "pixel_values": found["pixel_values"].to(dtype)}


def owned(part, model):
    return {name: p for name, p in model.named_parameters() if part.owns(name)}


def test_the_mixture_is_its_equation():
    _, _, mixture = attached()
    x_BLD, mixture.concepts_BC = noise(3, 4, 16), noise(3, 7, seed=1)
    alpha_BE = experts.shares(mixture.router(mixture.concepts_BC), 2)
    published = mixture.base(x_BLD)
    refused = sum(
        a_B[:, None, None] * expert(x_BLD)
        for a_B, expert in zip(alpha_BE.unbind(1), mixture.experts, strict=True)
    )
    assert_close(mixture(x_BLD), (published + refused) / 2)  # as it learns
    mixture.gates_B = torch.tensor([0.0, 0.3, 1.0])
    found = mixture(x_BLD)
    assert torch.equal(found[0], published[0])
    assert_close(found[1], published[1] + 0.3 * (refused - published)[1] / 2)
    mixture.gates_B = torch.tensor([1.0, 0.0, 1.0])  # hard
    gates_B = mixture.gates_B[:, None, None]
    assert_close(mixture(x_BLD), (published + gates_B * refused) / (1 + gates_B))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_refusers_that_have_not_learnt_change_nothing(dtype, close):
    part, model, mixture = attached(dtype, differing=False)
    wanted = tiny.tiny_llava(dtype=dtype)(**batch_of(dtype=dtype)).logits
    assert torch.equal(model(**batch_of(dtype=dtype)).logits, wanted)  # no concepts yet
    mixture.concepts_BC = noise(2, 7)
    for gates in (None, [1.0, 0.4]):
        mixture.gates_B = gates and torch.tensor(gates)
        found = model(**batch_of(dtype=dtype)).logits
        assert found.dtype == dtype
        assert_close(found, wanted, rtol=0, atol=close)
    assert {p.dtype for p in owned(part, model).values()} == {torch.float32}


def test_closed_gates_are_the_published_model():
    _, model, mixture = attached()
    wanted = tiny.tiny_llava()(**batch_of()).logits
    mixture.concepts_BC = noise(2, 7)
    assert not torch.allclose(model(**batch_of()).logits, wanted, atol=0.05)
    mixture.gates_B = torch.zeros(2)
    assert torch.equal(model(**batch_of()).logits, wanted)


def test_pictures_know_no_batch_mates():
    _, model, mixture = attached()
    batch = batch_of(6)
    concepts_BC, gates_B = noise(6, 7), torch.rand(6, generator=torch.Generator().manual_seed(1))
    mixture.concepts_BC, mixture.gates_B = concepts_BC, gates_B
    together = model(**batch).logits
    for row in range(6):
        one = slice(row, row + 1)
        mixture.concepts_BC, mixture.gates_B = concepts_BC[one], gates_B[one]
        alone = model(**{name: t[one] for name, t in batch.items()}).logits
        assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_only_refusers_that_are_free_and_the_router_learn():
    """The most used of the finished tasks, 1 and 0, are held: they are trained no more."""
    part, model, mixture = attached()
    mixture.train()
    mixture.router.eval()  # no dropout
    batch = batch_of()
    logits_SV, target_S = logits(model, batch["input_ids"], **batch, **TOLD)
    assert torch.equal(mixture.concepts_BC, noise(2, 7))  # taken from the batch
    (F.cross_entropy(logits_SV, target_S) + part.penalty(model, logits_SV)).backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained
    held = {f"{PROJECTOR}.experts.{n}." for n in (0, 1)}
    assert trained == {n for n in owned(part, model) if not n.startswith(tuple(held))}
    assert len(trained) == 3 * 4 + len([*mixture.router.parameters()])
    chosen = set(mixture.router(noise(2, 7)).topk(2).indices.flatten().tolist())
    assert all(p.grad.abs().sum() > 0 for p in mixture.router.output.parameters())
    for number in {2, 3, 4} - chosen:  # there for the engine, and 0
        assert not any(p.grad.any() for p in mixture.experts[number].parameters())


def test_the_penalty_is_of_the_pictures_that_were_looked_at():
    part, model, mixture = attached()
    mixture.train()
    mixture.router.eval()  # no dropout
    logits_SV, _ = logits(model, batch_of()["input_ids"], **batch_of(), **TOLD)
    x_BE = mixture.router(noise(2, 7))
    similar_T = torch.tensor([0.1, 0.9])
    wanted_B = experts.recommendation(x_BE, LOADS, similar_T, 0.5)
    wanted_B = wanted_B + experts.adaptation(x_BE, LOADS, similar_T)
    wanted = (5 * wanted_B[0] + 2 * wanted_B[1]) / len(logits_SV)
    assert_close(part.penalty(model, logits_SV), wanted)
    assert part.penalty(model, logits_SV) == 0  # nothing was looked at since
    logits(model, batch_of()["input_ids"], **batch_of(), **TOLD | {"answers": torch.zeros(2)})
    assert part.penalty(model, logits_SV[:0]) == 0  # and nothing answered
    part, model, mixture = attached(loads=Concepts(CONCEPTS, {}).loads)
    mixture.train()
    logits(model, batch_of()["input_ids"], **batch_of(), **TOLD)
    assert part.penalty(model, logits_SV) == 0  # the first task
    assert all(p.requires_grad for p in owned(part, model).values())


def test_refusers_come_back_from_their_files_and_go_on(tmp_path):
    part, model, mixture = attached()
    part.save(owned(part, model), tmp_path, model, "a base")
    about = json.loads((tmp_path / "refusers.json").read_text())
    assert about == {
        "version": 1, **REFUSERS.model_dump(), "concepts": [4, 3],
        "base_model_name_or_path": "a base",
    }  # fmt: skip
    assert load_file(tmp_path / "refusers.safetensors").keys() == owned(part, model).keys()
    other = adapter.build(REFUSERS)
    loaded = other.attach(tiny.tiny_llava(), PROJECTOR)
    other.load(loaded, tmp_path)
    other.grow(loaded)
    assert not any(p.requires_grad for p in loaded.parameters())
    for one in (mixture, other.experts(loaded)):
        one.concepts_BC, one.gates_B = noise(2, 7), torch.tensor([1.0, 0.5])
        one.eval()
    with torch.no_grad():
        assert torch.equal(model(**batch_of()).logits, loaded(**batch_of()).logits)
    again = other.experts(loaded)
    again.widen((6, 3), seed=1)
    again.begin(LOADS, torch.tensor([0.5, 0.5]))
    assert torch.equal(again.router.output.weight, mixture.router.output.weight)
    assert again.router.sizes == (6, 3)


def test_refusers_of_other_settings_are_refused(tmp_path):
    part, model, _ = attached()
    part.save(owned(part, model), tmp_path, model, "a base")
    other = Refusers(REFUSERS.model_copy(update={"top": 3}))
    loaded = other.attach(tiny.tiny_llava(), PROJECTOR)
    with pytest.raises(ValueError, match=r"refusers.json: top is 2, but .* say 3"):
        other.load(loaded, tmp_path)
    with pytest.raises(ValueError, match=r"projector: 'projector' is no module of a Llava.*config"):
        Refusers(REFUSERS).attach(tiny.tiny_llava(), "projector")


def test_any_projector_has_refusers():
    mixture = Mixture(REFUSERS, torch.nn.Linear(3, 4))
    mixture.widen((4, 3), seed=0)
    mixture.concepts_BC = noise(2, 7)
    assert_close(mixture(noise(2, 3)), mixture.base(noise(2, 3)))


def test_settings_that_do_not_fit_are_refused():
    for changes, found in (({"top": 6}, "top 6 is more"), ({"heads": 3}, "width 8 cannot")):
        with pytest.raises(ValidationError, match=found):
            settings.Refusers(**{**REFUSERS.model_dump(), **changes})
