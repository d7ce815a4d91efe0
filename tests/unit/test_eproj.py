"""EProj: keys that tell tasks apart, an expert for each, answers that know no batch mates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.testing import assert_close

import tiny
from palimpsest import models, study
from palimpsest.config import Evaluation, Method, Model, load
from palimpsest.data.example import characters
from palimpsest.evaluation import generate
from palimpsest.evaluation.generate import answer, evaluate
from palimpsest.files import write_json
from palimpsest.methods import adapter, settings
from palimpsest.methods.keys import Keys
from palimpsest.methods.projector import ProjectorExperts
from palimpsest.methods.router import Asked
from palimpsest.models import checkpoint
from palimpsest.models.queries import Queries
from palimpsest.models.routing import ROUTER, Routing
from palimpsest.refusal import ConfigError
from palimpsest.study import Manner
from palimpsest.tasks import Examples
from workspace import LORA, TASKS, change, entered, stage_of, write

RESULTS = Path("results")
KEYS = settings.Keys(
    name="keys", steps=120, learning_rate=0.05, strength=0.1, batch=16, examples=50
)
EPROJ = {
    **LORA,
    "title": "EProj",
    "adapter": {"name": "projector"},
    "router": KEYS.model_dump(),
}
PROJECTOR = "model.multi_modal_projector"


def separable(num_tasks=4, num_examples=30, seed=0):
    """Queries of some tasks: around a direction of each task's own, at different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def around(size):
        centre_D = torch.randn(size, generator=generator)
        noise_ND = 0.3 * torch.randn(num_examples, size, generator=generator)
        return (centre_D + noise_ND) * (1 + torch.rand(num_examples, 1, generator=generator))

    return [{"image": around(12), "instruction": around(8)} for _ in range(num_tasks)]


def asked(queries):
    return Asked(queries, [], {}, lambda *_: None)


def slots(keys, queries):
    """The places, among the steps learnt, of those that questions are sent to."""
    return len(keys.state["image"]) - 1 - keys.route(queries).ago_B


def learnt(tasks, settings=KEYS):
    keys = Keys(settings, {})
    for seed, queries in enumerate(tasks):
        keys.learn(asked(queries), seed)
    return keys


def test_separable_questions_all_find_their_task():
    tasks = separable()
    keys = Keys(KEYS, {})
    for num_learnt, queries in enumerate(tasks, start=1):
        before = {name: t.clone() for name, t in keys.state.items()}
        keys.learn(asked(queries), seed=num_learnt)
        assert {n: t.shape for n, t in keys.state.items()} == {
            "image": (num_learnt, 12), "instruction": (num_learnt, 8),
        }  # fmt: skip
        for name, old in before.items():  # what was learnt stays
            assert torch.equal(keys.state[name][:-1], old)
        for slot, others in enumerate(tasks):
            found = slots(keys, others)
            if slot < num_learnt:
                assert found.tolist() == [slot] * 30
            else:  # a task to come goes to one that has been learnt
                assert 0 <= found.min() <= found.max() < num_learnt
    again = Keys(KEYS, keys.state)
    assert torch.equal(again.route(tasks[2]).ago_B, keys.route(tasks[2]).ago_B)


def test_a_key_ends_where_its_loss_is_least():
    """The sum of cos(q, k) is greatest along the mean of the queries at length one."""
    (queries,) = tasks = separable(1)
    keys = learnt(tasks, KEYS.model_copy(update={"steps": 500, "batch": 64, "learning_rate": 0.02}))
    for name, q_ND in queries.items():
        best_D = F.normalize(q_ND, dim=-1).mean(0)
        assert F.cosine_similarity(keys.state[name][0], best_D, dim=0) > 0.999


def test_a_first_step_is_that_of_adam_from_the_seeds_keys():
    """Adam's first step is the learning rate along the gradient's signs."""
    queries = separable(1)[0]
    one = KEYS.model_copy(update={"steps": 1, "batch": 1, "learning_rate": 0.5})
    none = KEYS.model_copy(update={"steps": 1, "batch": 1, "learning_rate": 1e-12})
    start = learnt([queries], none).state["image"][0]
    assert start.min() >= 0
    assert start.max() < 1
    moved = (learnt([queries], one).state["image"][0] - start) / 0.5
    fits = []
    for q_D in queries["image"]:  # one of them was drawn
        key = start.clone().requires_grad_()
        (1 - (q_D @ key) / (q_D.norm() * key.norm())).backward()
        fits.append(torch.allclose(moved, -key.grad.sign(), atol=1e-4))
    assert any(fits)


def test_keys_are_a_function_of_the_seed():
    queries = separable(1)[0]
    few = KEYS.model_copy(update={"steps": 10})
    one, same, other = (Keys(few, {}) for _ in range(3))
    one.learn(asked(queries), 3)
    same.learn(asked(queries), 3)
    other.learn(asked(queries), 4)
    assert torch.equal(one.state["image"], same.state["image"])
    assert not torch.equal(one.state["image"], other.state["image"])


def test_questions_without_pictures_pull_and_ask_by_their_texts():
    tasks = separable(3)
    whole = learnt(tasks)
    blind = [{**queries, "image": torch.zeros_like(queries["image"])} for queries in tasks]
    for slot, queries in enumerate(blind):
        assert slots(whole, queries).tolist() == [slot] * 30
    half = dict(tasks[0])
    half["image"] = half["image"] * (torch.arange(30) % 2)[:, None]
    best_D = F.normalize(half["image"][1::2], dim=-1).mean(0)
    assert F.cosine_similarity(learnt([half]).state["image"][0], best_D, dim=0) > 0.99
    mixed = learnt([tasks[0], blind[1], tasks[2]])
    assert torch.equal(mixed.state["image"][1], torch.zeros(12))  # nothing pulled it
    assert slots(mixed, tasks[0]).tolist() == [0] * 30
    assert slots(mixed, tasks[2]).tolist() == [2] * 30
    assert slots(mixed, blind[1]).tolist() == [1] * 30


def attached(num_experts=0, dtype=torch.float32):
    """A tiny LLaVA with so many experts, each of other weights."""
    part = adapter.build(settings.Projector(name="projector"))
    model = part.attach(tiny.tiny_llava(dtype=dtype), PROJECTOR)
    for seed in range(num_experts):
        part.grow(model)
        differ(part.experts(model).experts[-1], seed)
    return part, model


@torch.no_grad()
def differ(expert, seed, scale=0.5):
    """Change an expert's weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in expert.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def batch_of(dtype=torch.float32, batch=2):
    found = tiny.tiny_batch(batch)
    return {**found, "pixel_values": found["pixel_values"].to(dtype)}


def owned(part, model):
    return {name: p for name, p in model.named_parameters() if part.owns(name)}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 0), (torch.bfloat16, 0.02)])
def test_an_expert_that_has_not_learnt_changes_nothing(dtype, close):
    part, model = attached(dtype=dtype)
    wanted = tiny.tiny_llava(dtype=dtype)(**batch_of(dtype)).logits
    assert torch.equal(model(**batch_of(dtype)).logits, wanted)  # no expert yet
    part.grow(model)
    found = model(**batch_of(dtype)).logits
    assert found.dtype == dtype
    assert torch.allclose(found, wanted, atol=close, rtol=0)
    assert {p.dtype for p in owned(part, model).values()} == {torch.float32}
    differ(part.experts(model).experts[0], 0)
    assert not torch.allclose(model(**batch_of(dtype)).logits, wanted, atol=0.05)
    part.grow(model)  # a copy of the base, not of the one before
    assert torch.allclose(model(**batch_of(dtype)).logits, wanted, atol=close, rtol=0)


def test_only_the_newest_expert_learns():
    part, model = attached(3)
    model(**batch_of(), labels=batch_of()["input_ids"]).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_gradient == {n for n in owned(part, model) if f"{PROJECTOR}.experts.2." in n}
    assert len(with_gradient) == 4
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in with_gradient)


def test_each_picture_goes_through_its_own_expert():
    part, model = attached(2)
    experts, batch = part.experts(model), batch_of(batch=6)

    def logits(sent):
        experts.send(2 - torch.tensor(sent))
        return model(**batch).logits

    alone = [logits([expert] * 6) for expert in range(3)]
    assert torch.equal(alone[0], tiny.tiny_llava()(**batch).logits)  # the base
    assert not any(torch.allclose(alone[0], other, atol=0.1) for other in alone[1:])
    sent = [2, 0, 1, 1, 0, 2]
    mixed = logits(sent)
    for row, expert in enumerate(sent):
        assert torch.allclose(mixed[row], alone[expert][row], atol=1e-5)
    experts.send(torch.tensor([3, 2, 3, 2, 5, 2]))  # learnt before there were experts
    assert_close(model(**batch).logits, alone[0], rtol=0, atol=1e-5)
    experts.experts_B = None
    assert torch.equal(model(**batch).logits, alone[2])


def test_experts_come_back_from_their_files(tmp_path):
    part, model = attached(2)
    part.save(owned(part, model), tmp_path, model, "a base")
    about = json.loads((tmp_path / "experts.json").read_text())
    assert about == {
        "version": 1, "name": "projector", "experts": 2, "base_model_name_or_path": "a base",
    }  # fmt: skip
    saved = load_file(tmp_path / "experts.safetensors")
    assert saved.keys() == owned(part, model).keys()
    assert not any(".base." in name for name in saved)
    other, loaded = attached()
    other.load(loaded, tmp_path)
    for name, parameter in owned(part, model).items():
        assert torch.equal(loaded.get_parameter(name), parameter)
    assert not any(p.requires_grad for p in loaded.parameters())
    batch = batch_of(batch=3)
    for one in (model, loaded):
        one.get_submodule(PROJECTOR).experts_B = torch.tensor([2, 1, 0])
    assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    other.grow(loaded)  # the next step goes on from there
    assert len(owned(other, loaded)) == 3 * 4
    assert sum(p.requires_grad for p in loaded.parameters()) == 4


def test_files_of_another_projector_are_refused(tmp_path):
    part, model = attached(2)
    part.save(owned(part, model), tmp_path, model, "a base")
    tensors = load_file(tmp_path / "experts.safetensors")
    tensors.popitem()
    save_file(tensors, tmp_path / "experts.safetensors")
    other, fresh = attached()
    wanted = fresh(**batch_of()).logits
    with pytest.raises(ValueError, match=r"experts.safetensors: tensor .* is missing"):
        other.load(fresh, tmp_path)
    assert torch.equal(fresh(**batch_of()).logits, wanted)


def test_a_projector_that_is_not_there_is_refused():
    part = adapter.build(settings.Projector(name="projector"))
    with pytest.raises(ValueError, match=r"projector: 'projector' is no module of a Llava.*config"):
        part.attach(tiny.tiny_llava(), "projector")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace whose model says how it sees, and the stage `reading/choice` of EProj."""
    with entered(tmp_path_factory.mktemp("eproj"), train=24, test=8) as path:
        change(path, "models/tiny", tower="model.vision_tower")
        change(path, "benchmarks/three", initial=["counting"])
        change(path, "benchmarks/three", orders={"first": ["reading", "choice"]})
        write(path, "methods/eproj", EPROJ)
        hand_on(stage_of("reading/choice", "eproj"))
        yield path


def hand_on(stage):
    """Write the directory of a stage whose two experts have learnt something odd."""
    model, method = load(Model, "tiny"), load(Method, "eproj")
    lmm = models.load(model)
    part = checkpoint.attach(lmm, model, method)
    keys = Keys(method.router, {})
    for seed, (task,) in enumerate((*study.history(stage), stage.lineage.last)):
        queries = Queries(lmm).of([*Examples(RESULTS, "three", [task], "train")])
        keys.learn(asked(queries), seed)
    for seed in range(2):
        part.grow(lmm.module)
        differ(part.experts(lmm.module).experts[-1], seed, scale=3)
    state = owned(part, lmm.module)
    directory = stage.directory(RESULTS)
    checkpoint.save(state, directory, lmm, model, part)
    save_file(keys.state, directory / ROUTER)
    record = {"fingerprint": study.stage_fingerprint(stage), "identity": study.identity(stage)}
    write_json(directory / "stage.json", record)


class Rows(list):
    """Some examples in some order, as `answer` reads them."""

    def characters(self):
        return [characters(e) for e in self]


def questions():
    """Questions of all tasks; some have no picture."""
    found = [*Examples(RESULTS, "three", TASKS, "test")]
    return Rows(replace(e, image=None) if n % 5 == 0 else e for n, e in enumerate(found))


def test_answers_do_not_depend_on_the_batch_mates(root):
    stage, manner = stage_of("reading/choice", "eproj"), Manner("choice", {}, 6)
    lmm = generate.load_stage(stage, RESULTS)
    routing = generate.load_routing(stage, RESULTS, lmm)
    assert isinstance(routing, Routing)
    assert routing.steps == ("counting", "reading", "choice")
    rows = questions()
    alone, _ = answer(lmm, rows, manner, 1, routing)
    sent = [row["expert"] for row in alone]
    assert set(sent) == {"counting", "reading", "choice"}
    assert len({row["prediction"] for row in alone}) > 3
    assert answer(lmm, rows, manner, 8, routing)[0] == alone
    backwards = Rows(reversed(rows))
    assert answer(lmm, backwards, manner, 24, routing)[0] == alone[::-1]
    experts = lmm.module.get_submodule(PROJECTOR)
    assert isinstance(experts, ProjectorExperts)
    experts.experts_B = None
    newest, _ = answer(lmm, rows, manner, 8)
    assert {row["expert"] for row in newest} == {None}
    differing = {s for s, a, n in zip(sent, alone, newest, strict=True)
                 if a["prediction"] != n["prediction"]}  # fmt: skip
    assert differing == {"counting", "reading"}  # the newest expert is that of `choice`


def test_a_cell_says_where_its_questions_went(root, capsys):
    stage = stage_of("reading/choice", "eproj")
    evaluate(stage, ["choice", "counting"], RESULTS, Evaluation(batch=8))
    printed = capsys.readouterr().out
    for task in ("choice", "counting"):
        cell = stage.cell(RESULTS, "test", task)
        experts = pq.read_table(cell / "predictions.parquet")["expert"].to_pylist()
        share = experts.count(task) / len(experts)
        assert share > 0.9
        line = next(line for line in printed.splitlines() if f"{stage} on {task}:" in line)
        assert line.endswith(f", {share:.1%} sent to their own expert")


def test_a_model_that_does_not_say_how_it_sees_is_refused(workplace):
    router = {"adapter": EPROJ["adapter"], "router": EPROJ["router"]}
    tir = {"name": "tir", "base": "ewc", "strength": 1, "examples": 8}
    for keys in (router, {"regulariser": tir, "router": None, "adapter": LORA["adapter"]}):
        workplace.change("methods/lora", **keys)
        with pytest.raises(ConfigError, match=r"models/tiny.yaml: tower: is missing: .*lora.yaml"):
            study.plan("small")
    workplace.change("models/tiny", tower="vision_tower")
    assert study.plan("small").trained
