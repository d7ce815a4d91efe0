"""How alike tasks are: by hand, as files, and by a model's own embeddings."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from palimpsest import cli
from palimpsest.embeddings import embedding_file, fingerprints, read_embeddings, read_steps
from palimpsest.evaluation import embed as embedding
from palimpsest.evaluation.embed import mean_embeddings, strided
from palimpsest.methods.similarity import by_modality, joined, similarity, to_history, unit
from palimpsest.plan import views
from palimpsest.refusal import ConfigError
from palimpsest.study import RESULTS, plan
from palimpsest.tasks import open_task
from workspace import change, entered

# Cosines of the pairs (0,1), (0,2), (1,2): 0.6, 0, 0.8; then 0.8, −0.6, 0; then all alike.
IMAGE = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
INSTRUCTION = np.array([[1, 0], [0.8, 0.6], [-0.6, 0.8]], np.float32)
ANSWER = np.array([[0, 1], [0, 1], [0, 1]], np.float32)
# sigmoid((c - mean) / unbiased std), by a calculator
S_IMAGE = (0.5793867, 0.2458449, 0.6901115)
S_INSTRUCTION = (0.7396353, 0.2790542, 0.4762888)


def three_tasks():
    return {"image": IMAGE, "instruction": INSTRUCTION, "answer": ANSWER}


def pairs(s_TT):
    return s_TT[0, 1], s_TT[0, 2], s_TT[1, 2]


def test_three_tasks_by_hand():
    found = by_modality(three_tasks())
    assert pairs(found["image"]) == pytest.approx(S_IMAGE, abs=1e-6)
    assert pairs(found["instruction"]) == pytest.approx(S_INSTRUCTION, abs=1e-6)
    assert pairs(found["answer"]) == (0.5, 0.5, 0.5)  # no spread: z = 0
    overall = similarity(three_tasks())
    expected = [a * b * 0.5 for a, b in zip(S_IMAGE, S_INSTRUCTION, strict=True)]
    assert pairs(overall) == pytest.approx(expected, abs=1e-6)
    for s_TT in (overall, *found.values()):
        assert np.array_equal(s_TT, s_TT.T)
        assert np.array_equal(np.diag(s_TT), [1, 1, 1])


def test_one_pair_is_its_cosines():
    two = {"image": IMAGE[:2], "instruction": INSTRUCTION[:2]}
    assert similarity(two)[0, 1] == pytest.approx(0.6 * 0.8)
    negative = {"image": INSTRUCTION[[0, 2]]}
    assert similarity(negative)[0, 1] == pytest.approx(-0.6)


def test_rounding_of_float32_is_no_difference():
    rounded_TE = np.stack([unit(np.ones(7)), unit(np.ones(7)), unit(np.ones(7))]).astype(np.float32)
    rounded_TE[1] *= 1 + 1e-7
    assert pairs(by_modality({"image": rounded_TE})["image"]) == (0.5, 0.5, 0.5)


def test_a_task_without_pictures_is_like_no_other():
    blind_TE = np.stack([IMAGE[0], IMAGE[1], unit(np.zeros(2, np.float32))])
    s_TT = by_modality({"image": blind_TE})["image"]
    assert np.isfinite(s_TT).all()
    assert s_TT[0, 2] == s_TT[1, 2] < s_TT[0, 1]


def test_a_stage_is_compared_with_what_was_before():
    new_to_old = to_history(three_tasks())
    assert new_to_old == pytest.approx(
        [S_IMAGE[1] * S_INSTRUCTION[1] / 2, S_IMAGE[2] * S_INSTRUCTION[2] / 2], abs=1e-6
    )
    assert to_history({"image": IMAGE[:2]}) == pytest.approx([0.6])
    assert to_history({"image": IMAGE[:1]}) == []


def test_a_joint_step_is_the_mean_of_its_tasks():
    assert joined(IMAGE[[0, 2]]) == pytest.approx([0.5**0.5, 0.5**0.5])
    assert joined(IMAGE[1:2]) == pytest.approx(IMAGE[1])


@pytest.mark.parametrize(("total", "count"), [(10, 4), (3, 10), (1000, 1000), (1, 5)])
def test_a_stride_is_even_and_reaches_both_ends(total, count):
    chosen = strided(total, count)
    assert chosen[0] == 0
    assert chosen[-1] == total - 1
    assert len(chosen) == len(set(chosen)) == min(total, count)
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


class Scripted:
    """Embeds an example, or a text, as the numbers that it consists of."""

    def of(self, examples):
        rows = [[float(v) for v in e.turns[-1].question.split()] for e in examples]
        return {"image": torch.tensor(rows) * 2, "instruction": torch.tensor(rows)}

    def texts(self, texts):
        return torch.tensor([[float(v) for v in text.split()] for text in texts])


def asked(question, answer):
    from palimpsest.data.example import Example, Turn

    turns = (Turn("9 9", "9 9"), Turn(question, answer))
    return Example("x", None, turns, (answer,))


def test_the_mean_is_over_examples_and_not_over_batches():
    batches = [[asked("1 0", "0 5"), asked("1 0", "0 5")], [asked("0 4", "3 0")]]
    found = mean_embeddings(Scripted(), batches)
    assert found["instruction"] == pytest.approx(unit(np.array([2.0, 4.0])))
    assert found["image"] == pytest.approx(found["instruction"])  # of length 1
    assert found["answer"] == pytest.approx(unit(np.array([3.0, 10.0])))
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A workspace whose three tasks have been embedded by one command."""
    with entered(tmp_path_factory.mktemp("workspace"), train=20, test=2) as root:
        change(root, "models/tiny", tower="model.vision_tower")
        run("embed", "tiny", "choice", "reading", "counting")
        yield root


def run(*command):
    args = cli.parser().parse_args(command)
    args.work(args)


def test_a_command_embeds_every_task_that_it_names(embedded):
    from palimpsest.config import Model, load
    from palimpsest.models import load as load_model
    from palimpsest.models.queries import Queries

    path = embedding_file(RESULTS, "tiny", "reading")
    with safe_open(path, "numpy") as file:
        assert file.metadata() == fingerprints("tiny", "reading")
    found = load_file(path)
    queries = Queries(load_model(load(Model, "tiny")))
    examples = list(open_task(RESULTS, "reading", "train"))
    each = [queries.of([e]) | {"answer": queries.texts([e.turns[-1].answer])} for e in examples]
    for name in ("image", "instruction", "answer"):
        mean_E = torch.cat([one[name] for one in each]).mean(0).numpy()
        assert found[name] == pytest.approx(mean_E / np.linalg.norm(mean_E), abs=1e-5)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        f"{task}.safetensors" for task in ("choice", "counting", "reading")
    ]


def test_embeddings_are_read_in_the_order_asked_for(embedded):
    both = read_embeddings(RESULTS, "tiny", ["reading", "choice"])
    for row, task in enumerate(("reading", "choice")):
        own = load_file(embedding_file(RESULTS, "tiny", task))
        assert all(np.array_equal(both[name][row], own[name]) for name in own)
    steps = read_steps(RESULTS, "tiny", [("choice", "reading"), ("counting",)])
    assert steps["answer"][0] == pytest.approx(joined(both["answer"]))
    assert steps["answer"].shape == (2, both["answer"].shape[1])


def test_a_report_is_given_the_similarities_that_it_asks_for(embedded):
    for task in plan("tiny").tasks:
        run("chance", task)
    assert views(plan("tiny"))[0].similarities == {}
    change(embedded, "tiny", similarity=True)
    found = views(plan("tiny"))[0].similarities["tiny"]
    change(embedded, "tiny", similarity=False)
    expected = similarity(read_embeddings(RESULTS, "tiny", plan("tiny").tasks))
    assert list(found) == ["overall", "image", "instruction", "answer"]
    assert np.array_equal(found["overall"], expected)


def test_embeddings_of_another_config_are_refused(embedded):
    path = str(embedding_file(RESULTS, "tiny", "choice"))
    for key, other, own in (
        ("weights", "weights/other", "weights/tiny"),
        ("tower", "model.other", "model.vision_tower"),
        ("text_encoder", {"weights": "weights/bert"}, None),
    ):
        change(embedded, "models/tiny", **{key: other})
        with pytest.raises(ValueError, match=f"{path}: model_fingerprint is"):
            read_embeddings(RESULTS, "tiny", ["choice"])
        change(embedded, "models/tiny", **{key: own})
    change(embedded, "tasks/choice", prompt="{question}")
    with pytest.raises(ValueError, match=f"{path}: task_fingerprint is"):
        read_embeddings(RESULTS, "tiny", ["choice"])
    change(embedded, "tasks/choice", prompt="{question}\nAnswer shortly.")
    assert read_embeddings(RESULTS, "tiny", ["choice"])["image"].shape[0] == 1


def test_files_that_are_missing_or_broken_are_named(embedded):
    path = embedding_file(RESULTS, "tiny", "choice")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=f"{path}: not a valid safetensors file"):
        read_embeddings(RESULTS, "tiny", ["choice"])
    save_file({"image": IMAGE[0]}, path)
    with pytest.raises(ValueError, match=f"{path}: not a valid safetensors file"):
        read_embeddings(RESULTS, "tiny", ["choice"])
    path.unlink()
    with pytest.raises(ValueError, match=f"{path}: file is missing; `palimpsest embed tiny choice"):
        read_embeddings(RESULTS, "tiny", ["choice"])
    path.write_bytes(whole)


def test_a_file_is_whole_or_absent(embedded, monkeypatch):
    path = embedding_file(RESULTS, "tiny", "choice")
    before = path.read_bytes()

    def killed(vectors, partial, metadata):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        embedding.embed("tiny", ["choice"], RESULTS)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 3


def test_a_model_that_does_not_say_how_it_sees_cannot_be_asked(workplace):
    workplace.change("small", similarity=True)
    with pytest.raises(
        ConfigError, match=r"small\.yaml: similarity: needs `tower` in .*tiny\.yaml"
    ):
        plan("small")
    workplace.change("models/tiny", tower="model.vision_tower")
    assert plan("small").study.similarity
