"""How a model reads examples: what is learnt of a conversation, and how batches are padded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from palimpsest import models
from palimpsest.config import Model, load
from palimpsest.data.example import Example, Turn, black
from palimpsest.models.lmm import IGNORE
from workspace import make_workspace

PICTURE = black((64, 64))
ASKED = Turn("Which colour is the circle?\nAnswer shortly.", "red")
THREE = (ASKED, Turn("Which bar is the tallest?", "blue green"), Turn("What?", "C"))


@pytest.fixture(scope="module")
def lmm(tmp_path_factory):
    """The model of a workspace, and its config."""
    root = make_workspace(tmp_path_factory.mktemp("models"))
    config = load(Model, "tiny", root / "config")
    return models.load(config.model_copy(update={"weights": str(root / config.weights)}))


def example(*turns, image=PICTURE):
    return Example("e", image, turns, (turns[-1].answer,))


def words(lmm, ids):
    return [lmm.tokenizer.convert_ids_to_tokens(i) for i in ids]


def learnt(lmm, encoded):
    """Return the learnt tokens, and assert that each label is the token itself."""
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (IGNORE, token) for token, label in pairs)
    return words(lmm, [label for label in encoded.labels if label != IGNORE])


def test_the_answer_and_its_end_are_learnt_and_nothing_else(lmm):
    encoded = lmm.encode(example(ASKED))
    assert learnt(lmm, encoded) == ["red", "</s>"]
    assert encoded.labels[-2:] == encoded.input_ids[-2:]
    text = words(lmm, encoded.input_ids)
    assert text[:7] == ["<s>", "USER:", "<image>", "<image>", "<image>", "<image>", "Which"]
    assert text[-3:] == ["ASSISTANT:", "red", "</s>"]
    assert encoded.pictures["pixel_values"].shape == (1, 3, 64, 64)


def test_every_answer_of_a_conversation_is_learnt(lmm):
    encoded = lmm.encode(example(*THREE))
    assert learnt(lmm, encoded) == ["red", "</s>", "blue", "green", "</s>", "C", "</s>"]
    assert words(lmm, encoded.input_ids).count("<image>") == 4  # at the first question alone


def test_an_answer_of_letters_is_learnt_whole(lmm):
    encoded = lmm.encode(example(Turn("Read.", "XQZW")))
    assert learnt(lmm, encoded) == ["X", "Q", "Z", "W", "</s>"]


def test_text_without_a_picture(lmm):
    encoded = lmm.encode(example(*THREE, image=None))
    assert not encoded.pictures
    assert "<image>" not in words(lmm, encoded.input_ids)
    assert learnt(lmm, encoded) == ["red", "</s>", "blue", "green", "</s>", "C", "</s>"]


@pytest.mark.parametrize("image", [PICTURE, None])
@pytest.mark.parametrize("turns", [(ASKED,), THREE])
def test_the_prompt_is_how_the_conversation_begins(lmm, turns, image):
    whole, prompt = (f(example(*turns, image=image)) for f in (lmm.encode, lmm.encode_prompt))
    length = len(prompt.input_ids)
    assert prompt.input_ids == whole.input_ids[:length]
    assert set(prompt.labels) == {IGNORE}
    # What is left is the last answer, and all of it is learnt.
    assert whole.labels[length:] == whole.input_ids[length:]
    assert lmm.decode(whole.input_ids[length:]) == turns[-1].answer


def test_a_conversation_is_cut_at_the_maximal_length(lmm):
    limit = lmm.config.max_length
    long = lmm.encode(example(*[Turn("a " * 20, "red")] * 10))
    assert len(long.input_ids) == len(long.labels) == limit
    shorter = lmm.encode(example(*[Turn("a " * 20, "red")] * 3))
    assert len(shorter.input_ids) < limit
    assert long.input_ids[:60] == shorter.input_ids[:60]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collation_pads_on_one_side(lmm, side):
    rows = [lmm.encode(example(ASKED)), lmm.encode(example(*THREE)), lmm.encode(example(THREE[2]))]
    batch = lmm.collate(rows, side)
    longest = max(len(row.input_ids) for row in rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, longest)
    for n, row in enumerate(rows):
        length, gap = len(row.input_ids), longest - len(row.input_ids)
        kept = slice(gap, None) if side == "left" else slice(length)
        padded = slice(gap) if side == "left" else slice(length, None)
        assert batch["input_ids"][n, kept].tolist() == row.input_ids
        assert batch["labels"][n, kept].tolist() == row.labels
        assert batch["attention_mask"][n, kept].all()
        assert (batch["input_ids"][n, padded] == lmm.pad_id).all()
        assert (batch["labels"][n, padded] == IGNORE).all()
        assert not batch["attention_mask"][n, padded].any()


def test_pictures_are_stacked_in_order_and_only_those_that_are_there(lmm):
    grey = lmm.encode(example(ASKED))
    seen = grey.pictures["pixel_values"]
    text, other = lmm.encode(example(ASKED, image=None)), {"pixel_values": seen + 1}
    pixels = lmm.collate([grey, text, replace(grey, pictures=other)], "right")["pixel_values"]
    assert torch.equal(pixels, torch.cat([seen, seen + 1]))
    assert "pixel_values" not in lmm.collate([text, text], "right")


def test_padding_changes_no_prediction(lmm):
    short, long = lmm.encode(example(ASKED)), lmm.encode(example(*THREE))
    assert len(long.input_ids) > len(short.input_ids) + 5

    def last(rows, side):
        batch = lmm.collate(rows, side)
        del batch["labels"]
        with torch.no_grad():
            logits_BLV = lmm.module(**batch).logits
        return logits_BLV[0, -1 if side == "left" else len(short.input_ids) - 1]

    for side in ("left", "right"):
        assert torch.allclose(last([short], side), last([short, long], side), atol=1e-5)


def test_missing_weights_are_named(lmm, tmp_path):
    config = lmm.config.model_copy(update={"weights": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="nowhere: no model here"):
        models.load(config)
