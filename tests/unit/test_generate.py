"""Answers depend on the question alone: not on the batch, not on the order, not on the merge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Semaphore

import pyarrow.parquet as pq
import pytest
import torch

from palimpsest import models
from palimpsest.config import Evaluation, Method, Model, Task, load
from palimpsest.data.example import characters
from palimpsest.evaluation import generate
from palimpsest.evaluation.generate import SCHEMA, answer, evaluate, load_stage
from palimpsest.evaluation.score import score_cell
from palimpsest.files import read_json
from palimpsest.models import checkpoint, pictures
from palimpsest.study import Manner, scorer, stage_fingerprint
from palimpsest.tasks import Examples, open_task
from workspace import TASKS, change, entered, stage_of, train

RESULTS = Path("results")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace with a trained stage each of LoRA and MoELoRA."""
    with entered(tmp_path_factory.mktemp("generate"), train=96, test=20) as path:
        for method in ("lora", "moelora"):
            train(stage_of("reading", method))
        yield path


@pytest.fixture(scope="module", params=["lora", "moelora"])
def lmm(root, request):
    """The model as a stage left it."""
    return load_stage(stage_of("reading", request.param), RESULTS)


SHORT = Manner("choice", {}, 8)


class Asked:
    """Some examples in some order, as `answer` reads them."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def characters(self):
        return [characters(e) for e in self.examples]


def questions():
    """Questions of all tasks, of different lengths; some have no picture."""
    found = [*Examples(RESULTS, "three", TASKS, "test")]
    return [replace(e, image=None) if n % 5 == 0 else e for n, e in enumerate(found)]


def test_answers_do_not_depend_on_the_batch_or_the_order(lmm):
    asked = questions()
    reference, _ = answer(lmm, Asked(asked), SHORT, batch=1)
    assert [row["id"] for row in reference] == [e.id for e in asked]
    assert len({row["prediction"] for row in reference}) > 3  # the model looks and reads
    for batch in (7, 64):
        assert answer(lmm, Asked(asked), SHORT, batch)[0] == reference
    backwards, _ = answer(lmm, Asked(asked[::-1]), SHORT, 64)
    assert backwards == reference[::-1]


def test_the_next_batch_is_encoded_while_one_is_answered(lmm, monkeypatch):
    asked, encoded, answered = questions()[:12], Semaphore(0), []
    encode, answers_of = lmm.encode_prompt, generate._generate

    def encode_prompt(example):
        encoded.release()
        return encode(example)

    def waiting(lmm, prompts, *others):
        answered.extend(prompts)
        coming = 4 if len(answered) < len(asked) else 0
        first = 4 if len(answered) == 4 else 0  # the batch itself
        assert all(encoded.acquire(timeout=60) for _ in range(first + coming))
        return answers_of(lmm, prompts, *others)

    monkeypatch.setattr(lmm, "encode_prompt", encode_prompt)
    monkeypatch.setattr(generate, "_generate", waiting)
    rows, _ = answer(lmm, Asked(asked), SHORT, batch=4)
    assert [row["id"] for row in rows] == [e.id for e in asked]


def test_a_question_that_cannot_be_encoded_is_an_error(lmm, monkeypatch):
    asked = questions()[:12]
    encode, last = lmm.encode_prompt, min(asked, key=lambda e: len(e.turns[-1].question))

    def encode_prompt(example):
        if example.id == last.id:
            raise ValueError(f"{example.id}: no such picture")
        return encode(example)

    monkeypatch.setattr(lmm, "encode_prompt", encode_prompt)
    with pytest.raises(ValueError, match=f"{last.id}: no such picture"):
        answer(lmm, Asked(asked), SHORT, batch=4)


def about_the_same_pictures():
    """Five questions about each of four pictures, in turn, and others of their own or none."""
    found = questions()
    shown = [e.image for e in found if e.image is not None][:4]
    same = [replace(e, image=shown[n % 4]) for n, e in enumerate(found[::3])]
    assert [sum(e.image == image for e in same) for image in shown] == [5] * 4
    apart = [e for n, e in enumerate(found) if n % 3 == 1 and e.image not in shown]
    return [*same, *apart]


def test_answers_about_one_picture_are_those_of_each_alone(lmm, monkeypatch):
    asked, decoded = about_the_same_pictures(), []
    reference, alone = answer(lmm, Asked(asked), SHORT, batch=1)
    assert len({row["prediction"] for row in reference}) > 3
    assert alone["prefix_tokens_saved"] == 0
    opened = pictures.opened
    monkeypatch.setattr(pictures, "opened", lambda image: decoded.append(image) or opened(image))
    images = {e.image for e in asked} - {None}
    for batch in (7, 64):
        decoded.clear()
        rows, counters = answer(lmm, Asked(asked), SHORT, batch)
        assert rows == reference
        assert counters["prompt_tokens"] == alone["prompt_tokens"]
        assert counters["prefix_tokens_saved"] > 0
        assert {*decoded} == images
        assert len(decoded) == len(images)
    # All questions are in one batch: <s>, USER: and a picture are computed once for five of them.
    assert counters["pictures_decoded"] == len(images)
    assert counters["prefix_tokens_saved"] >= (20 - 4) * (2 + lmm.image_length)
    backwards, _ = answer(lmm, Asked(asked[::-1]), SHORT, 64)
    assert backwards == reference[::-1]


def test_a_router_sees_every_question(lmm):
    """Experts may differ by question, so that pictures are looked at for each."""

    class Sends:
        def send(self, examples, prompts):
            assert len(examples) == len(prompts)
            return [example.id for example in examples]

    asked = about_the_same_pictures()
    reference, _ = answer(lmm, Asked(asked), SHORT, 64)
    rows, counters = answer(lmm, Asked(asked), SHORT, 64, Sends())
    assert counters["prefix_tokens_saved"] == 0
    assert rows == [row | {"expert": row["id"]} for row in reference]


def test_answers_look_at_the_picture_that_belongs_to_the_question(root):
    """One question about many pictures: with the pictures, the answers change places."""
    base = load_stage(stage_of("base"), RESULTS)
    with torch.no_grad():  # the random model looks more closely than it is
        base.module.model.multi_modal_projector.linear_2.weight.mul_(100)
    pictures = [e.image for e in questions() if e.image is not None][:20]
    asked = [replace(questions()[0], id=str(n), image=p) for n, p in enumerate(pictures)]
    forth, back = (
        [row["prediction"] for row in answer(base, Asked(examples), SHORT, 64)[0]]
        for examples in (asked, asked[::-1])
    )
    assert len(set(forth)) > 3
    assert back == forth[::-1]
    alone, _ = answer(base, Asked(asked[7:8]), SHORT, 64)
    assert alone[0]["prediction"] == forth[7]


class Scripted:
    """A model that answers with tokens that are written down; 2 ends, 0 pads."""

    end_id, pad_id, picture_id = 2, 0, None

    def __init__(self, rows):
        self.rows, self.module = rows, self
        self.config = load(Model, "tiny")
        self.device = torch.device("cpu")

    def encode_prompt(self, example):
        length = len(example.turns[0].question)
        pictures = {} if example.image is None else {"pixel_values": torch.zeros(1, 1)}
        return models.lmm.Encoded([5] * length, [-100] * length, pictures)

    collate = models.lmm.LMM.collate

    def decode(self, tokens):
        return " ".join(str(t) for t in tokens if t != 2)

    def generate(self, input_ids, **settings):
        assert settings["do_sample"] is False
        assert (settings["eos_token_id"], settings["pad_token_id"]) == (2, 0)
        self.settings = settings
        rows = torch.tensor(self.rows[: len(input_ids)])
        return torch.cat([input_ids, rows], dim=1)


def test_rows_stop_at_their_own_end():
    asked = [e for e in questions() if e.id.startswith("demo-counting")][:4]
    scripted = Scripted([[7, 2, 0, 0], [7, 8, 9, 7], [2, 0, 0, 0], [7, 8, 9, 2]])
    rows, _ = answer(scripted, Asked(asked), replace(SHORT, max_new_tokens=4), batch=4)
    longest_first = sorted(range(4), key=lambda i: -characters(asked[i]))
    found = [rows[i] for i in longest_first]
    assert [row["prediction"] for row in found] == ["7", "7 8 9 7", "", "7 8 9"]
    assert [row["num_tokens"] for row in found] == [2, 4, 1, 4]
    assert [row["stop_reason"] for row in found] == ["end", "length", "end", "end"]
    assert scripted.settings["max_new_tokens"] == 4
    for row, example in zip(rows, asked, strict=True):
        assert row["id"] == example.id
        assert row["prompt"] == example.turns[-1].question
        assert row["references"] == list(example.references)


def test_the_cost_is_counted():
    asked = questions()
    lengths = [len(e.turns[0].question) for e in asked]
    _, counters = answer(
        Scripted([[2]] * 16), Asked(asked), replace(SHORT, max_new_tokens=1), batch=16
    )
    assert counters["questions"] == len(asked) == 60
    assert counters["pictures_decoded"] == 48
    assert counters["prompt_tokens"] == sum(lengths)
    by_length = sorted(asked, key=lambda e: -characters(e))
    padded = 0
    for start in range(0, 60, 16):
        batch = [len(e.turns[0].question) for e in by_length[start : start + 16]]
        padded += sum(max(batch) - length for length in batch)
    assert counters["padded_tokens"] == padded
    assert counters["prefix_tokens_saved"] == 0
    assert padded < 0.4 * sum(max(lengths) - length for length in lengths)
    assert counters["seconds"] >= 0


def test_merged_or_not_the_answers_are_the_same(root):
    stage = stage_of("reading")
    merged = load_stage(stage, RESULTS)
    assert not [n for n, _ in merged.module.named_parameters() if "lora" in n]
    model, method = load(Model, "tiny"), load(Method, "lora")
    apart = models.load(model)
    adapter = checkpoint.attach(apart, model, method)
    checkpoint.load(apart, stage.directory(RESULTS), model, method, adapter)
    apart.module.eval()
    asked = Asked(questions())
    assert answer(merged, asked, SHORT, 64)[0] == answer(apart, asked, SHORT, 64)[0]
    base = load_stage(stage_of("base"), RESULTS)
    assert answer(merged, asked, SHORT, 64)[0] != answer(base, asked, SHORT, 64)[0]


@pytest.mark.parametrize(("lineage", "method"), [("base", "lora"), ("reading", "moelora")])
def test_a_stage_is_evaluated_and_scored(root, lineage, method, monkeypatch):
    stage, loads = stage_of(lineage, method), []
    monkeypatch.setattr(
        generate, "load_stage", lambda *args: loads.append(args) or load_stage(*args)
    )
    evaluate(stage, ["reading", "choice"], RESULTS, Evaluation(batch=64))
    assert len(loads) == 1  # one model for all cells
    for task in ("reading", "choice"):
        cell = stage.cell(RESULTS, "test", task)
        table = pq.read_table(cell / "predictions.parquet")
        assert table.schema.equals(SCHEMA)
        about = json.loads(table.schema.metadata[b"palimpsest"])
        assert about["stage_fingerprint"] == stage_fingerprint(stage)
        assert (about["evaluation"], about["questions"]) == ("test", 20)
        assert about["model_loads"] == (task == "reading")  # counted once for both cells
        assert table["id"].to_pylist() == open_task(RESULTS, task, "test").ids
        assert max(table["num_tokens"].to_pylist()) <= load(Task, task).max_new_tokens
        examples = open_task(RESULTS, task, "test")
        by = scorer("tiny", task, "metric")
        score_cell(cell, "metric", by, ".*", examples, stage_fingerprint(stage))
        assert read_json(cell / "metric" / "scores.json")["n"] == 20


def test_a_stage_of_another_config_is_not_evaluated(root):
    stage = stage_of("reading", "moelora")
    before = (root / "config/methods/moelora.yaml").read_bytes()
    adapter = {"name": "moelora", "rank": 4, "alpha": 9, "experts": 2}
    try:
        change(root, "methods/moelora", adapter=adapter)
        with pytest.raises(ValueError, match=r"method\.adapter\.alpha: was 8\.0, is 9\.0"):
            evaluate(stage, ["counting"], RESULTS, Evaluation(batch=64))
    finally:
        (root / "config/methods/moelora.yaml").write_bytes(before)
        change(root, "methods/moelora")
    assert not stage.cell(RESULTS, "test", "counting").exists()
