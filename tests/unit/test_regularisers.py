"""Regularisers against closed forms, and on a model with each adapter."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

import tiny
from palimpsest.methods import adapter, regulariser
from palimpsest.methods import settings as s
from palimpsest.methods.answers import IGNORE, logits

STRENGTH = 3.0
EWC = s.EWC(name="ewc", strength=STRENGTH, examples=8)
MAS = s.MAS(name="mas", strength=STRENGTH, examples=8)
LWF = s.LwF(name="lwf", strength=STRENGTH)


def tir(base):
    return s.TIR(name="tir", base=base, strength=STRENGTH, examples=8)


class Softmax(nn.Module):
    """Softmax regression as an LMM: inputs x_BLD are the hidden states, logits are W_VD x."""

    def __init__(self, W_VD):
        super().__init__()
        self.head = nn.Linear(*reversed(W_VD.shape), bias=False)
        self.head.weight.data = torch.tensor(W_VD, dtype=torch.float32)
        self.idle = nn.Parameter(torch.ones(2))  # no example touches it

    def base_model(self, x_BLD, use_cache):
        return SimpleNamespace(last_hidden_state=x_BLD)

    def get_output_embeddings(self):
        return self.head


RNG = np.random.default_rng(0)
W_VD = RNG.normal(size=(4, 3))
X_NLD = RNG.normal(size=(5, 6, 3))  # examples of six tokens
LABELS_NL = RNG.integers(4, size=(5, 6))
LABELS_NL[:, :3] = IGNORE
LABELS_NL[1, 4] = IGNORE  # answers differ in length


def one(n):
    """One example: labels_BL and the rest of its batch."""
    x_BLD = torch.tensor(X_NLD[n : n + 1], dtype=torch.float32)
    return torch.tensor(LABELS_NL[n : n + 1]), {"x_BLD": x_BLD}


def seen(n):
    """What an answer token is foretold from, x_SD, and the token, target_S, in numpy."""
    supervised_L = LABELS_NL[n, 1:] != IGNORE
    return X_NLD[n, :-1][supervised_L], LABELS_NL[n, 1:][supervised_L]


def softmax(logits_SV):
    exp_SV = np.exp(logits_SV)
    return exp_SV / exp_SV.sum(axis=1, keepdims=True)


def fisher(n):
    """((p - onehot) x^T, mean over the answer's tokens)^2, for W."""
    x_SD, target_S = seen(n)
    return ((softmax(x_SD @ W_VD.T) - np.eye(4)[target_S]).T @ x_SD / len(x_SD)) ** 2


def sensitivity(n):
    """|2 W x x^T, mean over the answer's tokens|: the gradient of ||Wx||^2."""
    x_SD, _ = seen(n)
    return np.abs(2 * W_VD @ x_SD.T @ x_SD / len(x_SD))


BY_HAND = [(EWC, fisher), (MAS, sensitivity)]


def penalty_of(part, model, n=0):
    labels_BL, batch = one(n)
    return part.penalty(model, logits(model, labels_BL, **batch)[0], labels_BL, batch)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def having_learnt(settings, *tasks):
    """A regulariser that remembers tasks, each given by its importances of W and of `idle`."""
    part = regulariser.build(settings, {})
    for task in tasks:
        importance = zip(("head.weight", "idle"), task, strict=True)
        part.remember({n: torch.as_tensor(v).float() for n, v in importance}, AT_ANCHOR)
    return part


AT_ANCHOR = weights_of(Softmax(W_VD))
IDLE = torch.zeros(2)
A, B, C = (torch.tensor(RNG.random((4, 3)), dtype=torch.float32) for _ in range(3))


def test_logits_are_made_where_an_answer_is():
    labels_BL = torch.tensor(LABELS_NL)
    x_BLD = torch.tensor(X_NLD, dtype=torch.bfloat16)
    logits_SV, target_S = logits(Softmax(W_VD).bfloat16(), labels_BL, x_BLD=x_BLD)
    x_SD, wanted_S = (np.concatenate(rows) for rows in zip(*map(seen, range(5)), strict=True))
    assert logits_SV.dtype == torch.float32
    assert_close(logits_SV.double(), torch.tensor(x_SD @ W_VD.T), rtol=0.05, atol=0.05)
    assert target_S.tolist() == wanted_S.tolist()


@pytest.mark.parametrize(("settings", "by_hand"), BY_HAND)
def test_importances_are_those_worked_out_by_hand(settings, by_hand):
    model = Softmax(W_VD)
    for n in range(5):
        for part in (settings, tir(settings.name)):
            found = regulariser.build(part, {}).importance(model, *one(n))
            assert found.keys() == {"head.weight", "idle"}
            assert_close(
                found["head.weight"].double(), torch.tensor(by_hand(n)), rtol=1e-4, atol=1e-6
            )
            assert found["idle"].tolist() == [0, 0]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("settings", [EWC, MAS])
def test_an_example_without_an_answer_has_no_importance(settings):
    _, batch = one(0)
    found = regulariser.build(settings, {}).importance(
        Softmax(W_VD), torch.full((1, 6), IGNORE), batch
    )
    assert not found["head.weight"].any()


@pytest.mark.parametrize("settings", [EWC, MAS])
def test_the_penalty_pulls_by_importance_towards_the_anchor(settings):
    model = Softmax(W_VD)
    part = having_learnt(settings, (A, [1, 2]))
    part.begin(model, [])
    assert penalty_of(part, model) == 0
    step = torch.tensor(RNG.normal(size=(4, 3)), dtype=torch.float32)
    model.head.weight.data += step
    model.idle.data -= 0.5
    penalty = penalty_of(part, model)
    wanted = STRENGTH * 0.5 * ((A * step.square()).sum() + (1 + 2) * 0.25)
    assert_close(penalty, wanted)
    penalty.backward()
    assert_close(model.head.weight.grad, STRENGTH * A * step, rtol=1e-5, atol=1e-6)
    assert model.idle.grad.tolist() == [-0.5 * STRENGTH, -1.0 * STRENGTH]
    assert penalty_of(part, model, n=3) == penalty  # the batch has no part in it


@pytest.mark.parametrize("settings", [EWC, MAS])
def test_importances_add_up_over_tasks_and_the_anchor_moves(settings):
    part = having_learnt(settings, (A, [1, 2]))
    moved = {name: w + 1 for name, w in AT_ANCHOR.items()}
    part = regulariser.build(settings, part.state)  # in the next stage
    part.remember({"head.weight": B, "idle": torch.tensor([0.5, 0])}, moved)
    assert_close(part.state["importance/head.weight"], A + B)
    assert part.state["importance/idle"].tolist() == [1.5, 2]
    assert_close(part.state["anchor/head.weight"], moved["head.weight"])


@pytest.mark.parametrize("settings", [EWC, tir("mas")])
def test_what_is_new_or_frozen_in_the_model_is_not_held(settings):
    part = having_learnt(settings, (A, [1, 2]))
    model = Softmax(W_VD)
    model.new = nn.Parameter(torch.zeros(3))
    model.idle.requires_grad_(False)
    part.begin(model, [0.0] if settings.name == "tir" else [])
    model.new.data += 1
    model.idle.data += 1
    assert penalty_of(part, model) == 0
    model.head.weight.data += 1
    assert penalty_of(part, model) > 0


@pytest.mark.parametrize(("settings", "by_hand"), BY_HAND)
def test_tir_of_unlike_tasks_is_its_base_with_importances_that_sum_to_one(settings, by_hand):
    model = Softmax(W_VD)
    importance = torch.tensor(by_hand(0)).float()
    base = having_learnt(settings, (importance, IDLE))
    part = having_learnt(tir(settings.name), (importance, IDLE))
    assert part.state["importance/head.weight"].sum().item() == pytest.approx(1)
    base.begin(model, [])
    part.begin(model, [0.0])
    model.head.weight.data += A
    assert_close(penalty_of(part, model), penalty_of(base, model) / importance.sum())


def test_tir_leaves_free_what_came_from_a_task_like_the_new_one():
    model = Softmax(W_VD)
    first, second = torch.zeros(4, 3), torch.zeros(4, 3)
    first[0], second[1] = 1 / 3, 1 / 3  # each task needs a row of its own
    part = having_learnt(tir("ewc"), (first, IDLE), (second, IDLE))
    part.begin(model, [1.0, 0.25])
    model.head.weight.data[0] += 7
    assert penalty_of(part, model) == 0
    model.head.weight.data[1] += 2
    penalty = penalty_of(part, model)
    assert penalty.item() == pytest.approx(0.5 * STRENGTH * 0.75 * 2**2)
    penalty.backward()
    assert_close(model.head.weight.grad, STRENGTH * 0.75 * second * 2)


def test_tir_keeps_the_largest_importance_and_its_task():
    tasks_TVD = torch.stack([A, B, C])
    part = having_learnt(tir("mas"), *((task, IDLE) for task in tasks_TVD))
    scaled_TVD = tasks_TVD / tasks_TVD.sum(dim=(1, 2), keepdim=True)
    largest_VD, source_VD = scaled_TVD.max(dim=0)
    assert_close(part.state["importance/head.weight"], largest_VD)
    assert part.state["source/head.weight"].tolist() == source_VD.tolist()
    assert set(source_VD.flatten().tolist()) == {0, 1, 2}
    assert part.state["source/idle"].tolist() == [0, 0]
    assert part.state["entries"] == 3


def test_the_discounts_of_tir_accumulate():
    """A task that is learnt next competes with what they left, and S is clamped to 0 … 1."""
    part = having_learnt(tir("ewc"), ([[0.25] * 3] * 4, IDLE))
    for similarities in ([0.5], [0.5, -0.5]):
        part = regulariser.build(tir("ewc"), part.state)
        part.begin(Softmax(W_VD), similarities)
        task = torch.zeros(4, 3)
        task[0, 0] = 1
        part.remember({"head.weight": task, "idle": IDLE}, AT_ANCHOR)
    importance, source = (part.state[f"{kind}/head.weight"] for kind in ("importance", "source"))
    assert importance[0, 0] == 1
    assert source[0, 0] == 1
    assert_close(importance[1:], torch.full((3, 3), 0.25 / 3 * 0.25))
    assert not source[1:].any()


def test_tir_without_any_importance_holds_nothing():
    part = having_learnt(tir("ewc"), (torch.zeros(4, 3), IDLE))
    assert not part.state["importance/head.weight"].any()


@pytest.mark.parametrize("settings", [EWC, MAS, tir("ewc")])
def test_a_state_goes_through_a_file(settings, tmp_path):
    part = having_learnt(settings, (A, [1, 2]), (B, [0, 1]))
    save_file(part.state, tmp_path / "state.safetensors")
    again = regulariser.build(settings, load_file(tmp_path / "state.safetensors"))
    assert again.state.keys() >= {"importance/head.weight", "anchor/idle"}
    model, penalties = Softmax(W_VD + 1), []
    for one_of_them in (part, again):
        one_of_them.begin(model, [0.2, 0.7] if settings.name == "tir" else [])
        penalties.append(penalty_of(one_of_them, model).item())
        one_of_them.remember({"head.weight": C, "idle": IDLE}, AT_ANCHOR)
    assert penalties[0] == penalties[1] > 0
    assert_close(again.state, part.state, rtol=0, atol=0)


def test_lwf_is_the_divergence_from_the_teacher():
    """Its gradient is zero at the teacher, and (p_student - p_teacher) x^T elsewhere."""
    model, part = Softmax(W_VD), regulariser.build(LWF, {})
    part.begin(model, [])
    penalty = penalty_of(part, model)
    penalty.backward()
    assert penalty.item() == pytest.approx(0, abs=1e-6)
    assert model.head.weight.grad.abs().max() < 1e-6
    model.zero_grad()
    model.head.weight.data += A
    penalty = penalty_of(part, model)
    penalty.backward()
    x_SD, _ = seen(0)
    teacher_SV = softmax(x_SD @ W_VD.T)
    student_SV = softmax(x_SD @ (W_VD + A.double().numpy()).T)
    divergence_S = (teacher_SV * np.log(teacher_SV / student_SV)).sum(axis=1)
    assert penalty.item() == pytest.approx(STRENGTH * divergence_S.mean(), rel=1e-4)
    gradient_VD = STRENGTH * (student_SV - teacher_SV).T @ x_SD / len(x_SD)
    assert_close(model.head.weight.grad.double(), torch.tensor(gradient_VD), rtol=1e-4, atol=1e-6)
    assert part.state == {}


def test_lwf_of_a_batch_without_answers_is_zero():
    model, part = Softmax(W_VD), regulariser.build(LWF, {})
    part.begin(model, [])
    labels_BL = torch.full((1, 6), IGNORE)
    batch = one(0)[1]
    assert part.penalty(model, logits(model, labels_BL, **batch)[0], labels_BL, batch) == 0


def test_what_lwf_does_not_need_is_refused():
    part = regulariser.build(LWF, {})
    assert not part.needs_importance
    with pytest.raises(NotImplementedError):
        part.importance(Softmax(W_VD), *one(0))
    with pytest.raises(NotImplementedError):
        part.remember({}, {})


ADAPTERS = {
    "lora": (s.Lora(name="lora", rank=4, alpha=8, dropout=0.5), tiny.TARGETS),
    "moelora": (s.MoELora(name="moelora", rank=4, alpha=8, experts=2, dropout=0.5), tiny.TARGETS),
    "subset": (s.Subset(name="subset"), r"model\.multi_modal_projector|.*layers\.1|lm_head"),
}


def adapted(name, dtype):
    """A tiny LLaVA that has learnt something with an adapter, and a batch for it."""
    settings, targets = ADAPTERS[name]
    model = adapter.build(settings).attach(tiny.tiny_llava(dtype=dtype), targets)
    move(model, 0.05)
    batch = tiny.tiny_batch()
    labels_BL = batch["input_ids"].clone()
    labels_BL[:, :-3] = IGNORE
    return model, labels_BL, {**batch, "pixel_values": batch["pixel_values"].to(dtype)}


def move(model, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_teacher_stays_while_the_model_learns(name, dtype):
    model, labels_BL, batch = adapted(name, dtype)
    before_SV = logits(model, labels_BL, **batch)[0].detach()
    part = regulariser.build(LWF, {})
    model.train()  # with dropout
    part.begin(model, [])
    assert not any(p.requires_grad for p in part.teacher.parameters())
    penalty = part.penalty(model, before_SV, labels_BL, batch)
    assert penalty.item() == pytest.approx(0, abs=1e-6)
    move(model, 0.5, seed=1)
    model.eval()
    logits_SV, _ = logits(model, labels_BL, **batch)
    assert part.penalty(model, logits_SV, labels_BL, batch).item() > 1e-3
    assert torch.equal(logits(part.teacher, labels_BL, **batch)[0], before_SV)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_teacher_shares_what_is_frozen_and_nothing_else(name):
    model, *_ = adapted(name, torch.bfloat16)
    part = regulariser.build(LWF, {})
    part.begin(model, [])
    taught = dict(part.teacher.named_parameters()) | dict(part.teacher.named_buffers())
    for own, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert (tensor.data_ptr() == taught[own].data_ptr()) is not tensor.requires_grad
    assert any(p.requires_grad for p in model.parameters())
    assert any(not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("settings", [EWC, MAS])
@pytest.mark.parametrize("name", ADAPTERS)
def test_importances_are_the_gradients_of_the_model_itself(name, settings):
    model, labels_BL, batch = adapted(name, torch.float32)
    part = regulariser.build(settings, {})
    one_of_them = {n: t[:1] for n, t in batch.items()}
    found = part.importance(model, labels_BL[:1], one_of_them)
    output = model(**one_of_them, labels=labels_BL[:1])
    size = output.logits[0, -4:-1].square().sum(dim=-1).mean()
    (output.loss if settings is EWC else size).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # Of the tower's last layer nothing is used: it has no gradient.
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained.items()}
    wanted = {n: g.square() if settings is EWC else g.abs() for n, g in gradients.items()}
    assert_close(found, wanted, rtol=1e-3, atol=1e-9 if settings is EWC else 1e-5)
    assert sum(v.sum() for v in found.values()) > 0


@pytest.mark.parametrize("settings", [EWC, MAS])
def test_importances_in_half_precision_are_like_those_in_full(settings):
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model, labels_BL, batch = adapted("subset", dtype)
        found.append(regulariser.build(settings, {}).importance(model, labels_BL, batch))
    whole, half = ({n: v.sqrt().sum() for n, v in one.items()} for one in found)
    assert {v.dtype for v in found[1].values()} == {torch.float32}
    assert_close(half, whole, rtol=0.02, atol=0)


def test_a_text_has_no_importance_for_the_projector_of_pictures():
    model = tiny.tiny_llava()
    adapter.build(ADAPTERS["subset"][0]).attach(model, r"model\.multi_modal_projector")
    batch = tiny.tiny_batch()
    words = {name: batch[name][:1, tiny.IMAGE_TOKENS :] for name in ("input_ids", "attention_mask")}
    found = regulariser.build(EWC, {}).importance(model, words["input_ids"], words)
    assert len(found) == 4
    assert not any(value.any() for value in found.values())
