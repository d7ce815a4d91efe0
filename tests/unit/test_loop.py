"""The loss is the model's own, averaged over the answer tokens of the global batch."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from palimpsest.config import Model, Training
from palimpsest.models.lmm import IGNORE
from palimpsest.training import engine
from palimpsest.training.loop import AnswerLoss, schedule
from tiny import tiny_batch, tiny_llava


def labelled(batch=4, seed=0):
    """A batch with answers of different lengths at its end, and padding on the right."""
    inputs = tiny_batch(batch, 8, seed)
    labels_BL = torch.full_like(inputs["input_ids"], IGNORE)
    for row in range(batch):
        end = labels_BL.shape[1] - row % 3
        inputs["attention_mask"][row, end:] = 0
        labels_BL[row, end - 1 - row : end] = inputs["input_ids"][row, end - 1 - row : end]
    return inputs, labels_BL


def nll(model, labels_BL, **inputs):
    """Return the sum over answer tokens; no penalty comes to it."""
    loss, penalty = AnswerLoss(model)(labels_BL, **inputs)
    assert penalty == 0
    return loss


def answers(labels_BL):
    return int((labels_BL[:, 1:] != IGNORE).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_that_of_the_model(seed):
    model = tiny_llava()
    inputs, labels_BL = labelled(seed=seed)
    ours = nll(model, labels_BL, **inputs) / answers(labels_BL)
    theirs = model(**inputs, labels=labels_BL).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_gradient_is_that_of_the_model():
    inputs, labels_BL = labelled()
    gradients = []
    for ours in (True, False):
        model = tiny_llava()
        if ours:
            loss = nll(model, labels_BL, **inputs) / answers(labels_BL)
        else:
            loss = model(**inputs, labels=labels_BL).loss
        loss.backward()
        # A picture's last layer is not used: it has no gradient.
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert len(gradients[0]) > 20


def test_a_label_at_the_first_position_is_no_answer():
    """Nothing comes before it from which it could be foretold."""
    model = tiny_llava()
    inputs, labels_BL = labelled()
    first_too = labels_BL.clone()
    first_too[:, 0] = inputs["input_ids"][:, 0]
    assert nll(model, first_too, **inputs) == nll(model, labels_BL, **inputs)


def test_a_batch_without_answers_is_no_loss():
    inputs, labels_BL = labelled()
    loss = nll(tiny_llava(), torch.full_like(labels_BL, IGNORE), **inputs)
    assert loss.item() == 0
    loss.backward()


def test_parts_of_a_batch_add_up():
    model = tiny_llava()
    inputs, labels_BL = labelled()
    whole = nll(model, labels_BL, **inputs)
    parts = [
        nll(model, labels_BL[k : k + 1], **{n: t[k : k + 1] for n, t in inputs.items()})
        for k in range(4)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_penalty_counts_once_for_each_answer_token():
    """Then it counts once a step, in however many parts the batch comes."""

    class Three:
        def penalty(self, model, logits_SV, labels_BL, batch):
            return logits_SV.new_tensor(3.0)

    inputs, labels_BL = labelled()
    model = tiny_llava()
    loss, penalty = AnswerLoss(model, Three())(labels_BL, **inputs)
    assert loss == nll(model, labels_BL, **inputs)
    assert penalty == 3 * answers(labels_BL)


def factors(num_steps, **settings):
    values = {"batch": 1, "epochs": 1, "learning_rate": 1.0, "schedule": "cosine", **settings}
    factor = schedule(Training.model_validate(values), num_steps)
    return [factor(step) for step in range(num_steps)]


def test_cosine():
    assert factors(4) == pytest.approx([1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.25 * 2**0.5])


def test_warmup_then_cosine():
    found = factors(100, warmup=0.1)
    assert found[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert found[10] == 1
    assert all(b < a for a, b in pairwise(found[10:]))
    assert 0 < found[-1] < 0.001


def test_constant():
    assert factors(5, schedule="constant") == [1] * 5
    assert factors(5, schedule="constant", warmup=0.4) == [0.5, 1, 1, 1, 1]


def test_one_step():
    assert factors(1) == [1]
    assert factors(1, warmup=0.05) == [1]


def test_the_projector_may_have_a_rate_of_its_own():
    lmm = tiny_llava()
    lmm.requires_grad_(False)
    for name in ("model.multi_modal_projector", "lm_head"):
        lmm.get_submodule(name).requires_grad_(True)
    model = Model.model_construct(projector="model.multi_modal_projector")
    together = engine._trained(AnswerLoss(lmm), model, None)
    rest, projector = engine._trained(AnswerLoss(lmm), model, 3e-5)
    assert len(together) == 5
    assert [p.shape for p in rest["params"]] == [lmm.lm_head.weight.shape]
    assert "lr" not in rest
    assert projector["lr"] == 3e-5
    own = list(lmm.model.multi_modal_projector.parameters())
    assert all(a is b for a, b in zip(projector["params"], own, strict=True))
