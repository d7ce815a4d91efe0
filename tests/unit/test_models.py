"""How a model reads examples: what is learnt of a conversation, and how batches are padded."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palimpsest import models
from palimpsest.config import Chat, Model, load
from palimpsest.data.example import Example, Turn, black
from palimpsest.models.lmm import IGNORE, conversation
from palimpsest.models.pictures import padded
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
    assert lmm.decode(whole.input_ids[length:]).strip() == turns[-1].answer


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


SEEN = 64  # pixels of a side that the tower sees
LOOKS = {  # where a box in a picture of 192 x 128 pixels is then, in the tower's pixels
    "pad": lambda x0, y0, x1, y1: [v * SEEN / 192 for v in (x0, y0 + 32, x1, y1 + 32)],
    "squash": lambda x0, y0, x1, y1: [x0 * 64 / 192, y0 * 64 / 128, x1 * 64 / 192, y1 * 64 / 128],
    "crop": lambda x0, y0, x1, y1: [x0 / 2 - 16, y0 / 2, x1 / 2 - 16, y1 / 2],
}


def red_in(picture, lmm, pictures):
    """Return the box of what is red in a picture, in pixels as the tower sees it."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    lmm = replace_config(lmm, pictures=pictures)
    shown = lmm.encode(example(ASKED, image=buffer.getvalue())).pictures["pixel_values"]
    assert shown.shape == (1, 3, SEEN, SEEN)
    rows, columns = torch.nonzero((shown[0, 0] > 0.3) & (shown[0, 1] < -0.3), as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def replace_config(lmm, **values):
    """Return the model with another config."""
    other = copy(lmm)
    other.config = lmm.config.model_copy(update=values)
    return other


@pytest.fixture(params=["of the demo", "of CLIP"])
def any_processor(request, lmm):
    """The model with an image processor that squashes pictures, and with one that crops them."""
    other = copy(lmm)
    if request.param == "of CLIP":
        square = {"height": SEEN, "width": SEEN}
        other.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": SEEN}, crop_size=square
        )
    return other


@pytest.mark.parametrize("pictures", LOOKS)
def test_a_box_is_where_the_way_of_fitting_pictures_puts_it(any_processor, pictures):
    lmm = any_processor
    box = (60, 30, 120, 66)
    wide = Image.new("RGB", (192, 128), "blue")
    wide.paste("red", box)
    assert red_in(wide, lmm, pictures) == pytest.approx(LOOKS[pictures](*box), abs=1)
    x0, y0, x1, y1 = LOOKS[pictures](*box)
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    assert red_in(tall, lmm, pictures) == pytest.approx([y0, x0, y1, x1], abs=1)


def test_pictures_are_fitted_as_the_weights_say_if_the_config_does_not(any_processor):
    wide = Image.new("RGB", (192, 128), "blue")
    wide.paste("red", (60, 30, 120, 66))
    own = "crop" if any_processor.image_processor.do_center_crop else "squash"
    assert red_in(wide, any_processor, None) == red_in(wide, any_processor, own)


@pytest.mark.parametrize("size", [(2, 5), (5, 2)])
def test_padding_has_the_mean_colour_and_is_rounded_down(size):
    square = padded(Image.new("RGB", size, "red"), [0.48145466, 0.4578275, 0.40821073])
    assert square.size == (5, 5)
    across = [(n, 2) if size == (2, 5) else (2, n) for n in range(5)]
    grey, red = (122, 116, 104), (255, 0, 0)  # the colour that LLaVA-1.5 pads with
    assert [square.getpixel(at) for at in across] == [grey, red, red, grey, grey]


def test_settings_of_the_image_processor_are_taken_from_the_config(lmm):
    white = {"image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]}
    config = lmm.config.model_copy(update={"pictures": white})
    shown = models.load(config).encode(example(ASKED)).pictures["pixel_values"]
    assert (shown == -1).all()
    wrong = lmm.config.model_copy(update={"pictures": {"image_meen": 1}})
    with pytest.raises(ValueError, match="'image_meen', did you mean 'image_mean'"):
        models.load(wrong)


def test_a_picture_that_does_not_fit_the_maximal_length_is_refused(lmm):
    with pytest.raises(ValueError, match="e: max_length: 4 tokens end inside the picture"):
        replace_config(lmm, max_length=4).encode(example(ASKED))
    text = replace_config(lmm, max_length=4).encode(example(ASKED, image=None))
    assert len(text.input_ids) == 4


def test_a_line_end_before_the_answer_belongs_to_the_prompt():
    chat = Chat(user="{question}\n", assistant="assistant\n{answer}<end>", image="")
    text, ((start, end),) = conversation(example(ASKED, image=None), chat)
    assert text[:start].endswith("assistant\n")
    assert text[start:end] == "red<end>"


def test_missing_weights_are_named(lmm, tmp_path):
    config = lmm.config.model_copy(update={"weights": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="nowhere: no model here"):
        models.load(config)


def test_a_bf16_model_does_not_wait_for_products_of_fp32():
    config, usual = load(Model, "demo-llava"), torch.backends.cuda.matmul.allow_tf32
    try:
        for precision in ("bf16", "fp32"):
            models.choose_products(config.model_copy(update={"precision": precision}))
            assert torch.backends.cuda.matmul.allow_tf32 == (precision == "bf16")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = usual
