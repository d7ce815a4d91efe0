"""Models of the hub by YAML alone: tiny random ones of three classes that read pictures each so.

Qwen2.5-VL has as many tokens as a picture is large; InternVL a tile or more of a fixed number of
tokens, between marks; Idefics3 (of which SmolVLM is one) rows of tiles, each with text of its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from itertools import groupby

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from palimpsest import models
from palimpsest.config import Method, Model, load
from palimpsest.data.example import Example, Turn
from palimpsest.evaluation import generate
from palimpsest.models import checkpoint
from palimpsest.models.lmm import IGNORE, conversation
from palimpsest.training.loop import AnswerLoss
from workspace import LORA, MODEL, REPOSITORY

ASKED = Turn("Which colour is the circle?\nAnswer shortly.", "red")
THREE = (ASKED, Turn("Which bar is the tallest?", "blue green"), Turn("What?", "C"))
LAYERS = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def tokenizer(**named):
    """Learn to read the questions; `named` are the special tokens that a processor asks for."""
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", *named.values()]
    learnt = Tokenizer(BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    texts = [t for turn in THREE for t in (turn.question, f" {turn.answer}")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=special
    )
    learnt.train_from_iterator(texts * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=learnt, pad_token="<|pad|>", extra_special_tokens=named
    )


def text_config(tokens):
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    return {**LAYERS, **ids, "num_key_value_heads": 2, "vocab_size": len(tokens)}


def save_qwen(path):
    """Save a Qwen2.5-VL: 16 x 16 pixels a token, at most nine tokens."""
    tokens = tokenizer(
        image_token="<|image_pad|>", video_token="<|video_pad|>",
        start="<|vision_start|>", end="<|vision_end|>",
    )  # fmt: skip
    ids = {
        f"{name}_token_id": tokens.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (("image", "image_pad"), ("video", "video_pad"),
                            ("vision_start", "vision_start"), ("vision_end", "vision_end"))
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 8,
        "window_size": 32, "out_hidden_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text_config(tokens) | {"rope_parameters": rope}, vision_config=vision, **ids
    )
    reader = Qwen2VLImageProcessorPil(patch_size=8, min_pixels=16**2, max_pixels=48**2)
    save(path, Qwen2_5_VLForConditionalGeneration(config), tokens, reader)


def save_internvl(path):
    """Save an InternVL: 32 x 32 pixels a tile, at most four of them and one of the whole."""
    tokens = tokenizer(
        start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    config = InternVLConfig(
        text_config=text_config(tokens) | {"model_type": "qwen2"},
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8},
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    reader = GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4
    )
    save(path, InternVLForConditionalGeneration(config), tokens, reader, {"image_seq_length": 4})


def save_idefics(path):
    """Save an Idefics3: 32 x 32 pixels a tile, at most two by two of them and one of the whole."""
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    named = {f"place_{n}": place for n, place in enumerate(places)}
    tokens = tokenizer(
        image_token="<image>", around="<fake_token_around_image>", whole="<global-img>",
        end="<end_of_utterance>", **named,
    )  # fmt: skip
    config = Idefics3Config(
        text_config=text_config(tokens) | {"model_type": "llama"},
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8},
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
    )
    reader = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    save(path, Idefics3ForConditionalGeneration(config), tokens, reader, {"image_seq_len": 4})


def save(path, module, tokens, reader, of_processor=None):
    """Save a model in the files of a hub repository; its weights are large, to look closely."""
    with torch.no_grad():
        for weights in (p for p in module.parameters() if p.dim() > 1):
            weights.mul_(5)
    module.save_pretrained(path)
    tokens.save_pretrained(path)
    reader.save_pretrained(path)
    if of_processor:
        (path / "processor_config.json").write_text(json.dumps(of_processor))


SMOLVLM = {
    "chat": {
        "system": "<|im_start|>",
        "image": "<image>",
        "user": "User:{question}<end_of_utterance>\n",
        "assistant": "Assistant: {answer}<end_of_utterance>\n",
    },
    "adapter_targets": r".*text_model.*\.(q_proj|v_proj|down_proj)",
    "projector": "model.connector",
}
CLASSES = {  # what is saved, and the config of a real model of the class: shipped, or written here
    "qwen": (save_qwen, "qwen2.5-vl-3b"),
    "internvl": (save_internvl, "internvl3.5-2b"),
    "idefics": (save_idefics, SMOLVLM),
}
TINY = {"max_length": 400, "precision": "fp32", "pictures": None, "revision": None}
LEARNT = Method.model_validate(LORA | {"train_projector": True})


@pytest.fixture(scope="module", params=CLASSES)
def config(request, tmp_path_factory):
    """The config of a model, but that its weights are saved here, small and random."""
    save_it, real = CLASSES[request.param]
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    save_it(path)
    if isinstance(real, str):
        whole = load(Model, real, REPOSITORY / "config")
    else:
        whole = Model.model_validate(MODEL | real | {"family": "hub"})
    return whole.model_copy(update=TINY | {"weights": str(path)})


@pytest.fixture(scope="module")
def lmm(config):
    """The model as it is loaded from its config alone."""
    return models.load(config)


def picture(width=60, height=40, seed=0):
    """Return a picture of noise as a PNG file's bytes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def example(*turns, image=None):
    return Example("e", image, turns, (turns[-1].answer,))


ROWS = [  # pictures of two sizes and none, conversations of three lengths
    example(ASKED, image=picture()),
    example(*THREE),
    example(THREE[2], image=picture(32, 64, seed=1)),
]


@pytest.mark.parametrize("image", [None, picture(), picture(90, 32)])
@pytest.mark.parametrize("turns", [(ASKED,), THREE])
def test_the_answers_and_their_ends_are_learnt_and_nothing_else(lmm, turns, image):
    encoded = lmm.encode(example(*turns, image=image))
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (IGNORE, token) for token, label in pairs)
    runs = [list(run) for learnt, run in groupby(encoded.labels, lambda t: t != IGNORE) if learnt]
    end = lmm.tokenizer.decode([lmm.end_id])
    assert [lmm.tokenizer.decode(run).strip() for run in runs] == [t.answer + end for t in turns]
    assert bool(encoded.pictures) == (image is not None)
    assert all(len(values) == len(encoded.input_ids) for values in encoded.tokens.values())


@pytest.mark.parametrize("image", [None, picture()])
def test_the_prompt_is_how_the_conversation_begins(lmm, image):
    whole, prompt = (f(example(*THREE, image=image)) for f in (lmm.encode, lmm.encode_prompt))
    length = len(prompt.input_ids)
    assert prompt.input_ids == whole.input_ids[:length]
    assert set(prompt.labels) == {IGNORE}
    assert whole.labels[length:] == whole.input_ids[length:]
    assert lmm.decode(whole.input_ids[length:]).strip() == "C"


def test_a_picture_takes_the_tokens_that_its_model_gives_it(lmm):
    image_id = lmm.module.config.image_token_id
    counts = [
        lmm.encode(example(ASKED, image=picture(*size))).input_ids.count(image_id)
        for size in ((32, 32), (60, 40))
    ]
    expected = {"qwen2_5_vl": [4, 8], "internvl": [4, 20], "idefics3": [20, 20]}
    assert counts == expected[lmm.module.config.model_type]
    assert max(counts) <= lmm.image_length <= max(counts) + 20


def test_the_model_is_given_what_its_processor_makes_of_text_and_picture(lmm):
    text, _ = conversation(ROWS[0], lmm.config.chat)
    shown = Image.open(BytesIO(ROWS[0].image))
    batch = lmm.collate([lmm.encode(ROWS[0])], "right")
    del batch["labels"]
    wanted = lmm.processor(text=[text], images=[shown], return_tensors="pt")
    assert batch.keys() == wanted.keys()
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def losses(lmm, rows):
    """Return the summed loss of some rows as one batch."""
    return AnswerLoss(lmm.module)(**lmm.collate([lmm.encode(row) for row in rows], "right"))[0]


def test_a_batch_of_rows_of_any_kind_has_the_sum_of_their_losses(lmm):
    with torch.no_grad():
        alone = [losses(lmm, [row]).item() for row in ROWS]
        assert losses(lmm, ROWS).item() == pytest.approx(sum(alone), rel=1e-4)
        assert losses(lmm, ROWS[::-1]).item() == pytest.approx(sum(alone), rel=1e-4)


def test_an_answer_depends_on_the_question_and_its_picture_alone(lmm):
    looked = [replace(ROWS[0], image=picture(60, 40, seed)) for seed in range(5)]
    rows = [*ROWS, *looked]

    def answers(rows):
        return generate._generate(lmm, [lmm.encode_prompt(row) for row in rows], None, 6)

    together = answers(rows)
    assert together == [answers([row])[0] for row in rows]
    assert len({tuple(answer) for answer in together[3:]}) > 1


def test_an_adapter_and_the_projector_learn_and_are_kept(config, tmp_path):
    lmm = models.load(config)
    adapter = checkpoint.attach(lmm, config, LEARNT)
    trained = {n: p for n, p in lmm.module.named_parameters() if p.requires_grad}
    layers = {n for n in trained if adapter.owns(n)}
    assert layers
    assert all("language_model" in n or "text_model" in n for n in layers)
    assert all(n.startswith(config.projector) for n in trained.keys() - layers)
    optimiser = torch.optim.Adam(trained.values(), lr=0.03)
    lmm.module.eval()  # without dropout
    found = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = losses(lmm, ROWS)
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    assert found[-1] < 0.8 * found[0]

    state = {n: p.detach() for n, p in trained.items()}
    checkpoint.save(state, tmp_path, lmm, config, adapter)
    again = models.load(config)
    checkpoint.load(again, tmp_path, config, LEARNT, checkpoint.attach(again, config, LEARNT))
    with torch.no_grad():
        assert losses(again, ROWS) == losses(lmm, ROWS)


def test_pictures_fit_a_model_in_bf16(config):
    lmm = models.load(config.model_copy(update={"precision": "bf16"}))
    assert lmm.module.dtype == torch.bfloat16
    with torch.no_grad():
        assert losses(lmm, ROWS).isfinite()


SMALLER = {  # the setting by which a picture takes fewer tokens
    "Qwen2VLImageProcessorPil": {"max_pixels": 16**2},
    "GotOcr2ImageProcessorPil": {"max_patches": 1},
    "Idefics3ImageProcessorPil": {"do_image_splitting": False},
}


def test_pictures_name_settings_of_the_image_processor(config, lmm):
    settings = SMALLER[type(lmm.processor.image_processor).__name__]
    fewer = models.load(config.model_copy(update={"pictures": settings}))
    long, short = (m.encode(ROWS[0]).input_ids for m in (lmm, fewer))
    assert len(short) < len(long) - 5
    assert fewer.image_length < lmm.image_length


def test_a_padded_picture_is_seen_as_a_square(config):
    padded = models.load(config.model_copy(update={"pictures": "pad"}))
    square = padded.encode(example(ASKED, image=picture(96, 32)))
    same = padded.encode(example(ASKED, image=picture(96, 96)))
    assert square.pictures["pixel_values"].shape == same.pictures["pixel_values"].shape
    assert square.input_ids == same.input_ids
    assert not torch.equal(square.pictures["pixel_values"], same.pictures["pixel_values"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pictures": {"max_pixel": 9}}, "no setting of a .* 'max_pixel'"),
        ({"pictures": "crop"}, "'crop' needs a tower of one size"),
        ({"max_length": 20}, "20 tokens end inside the picture"),
        ({"chat": {"image": "<picture>"}}, "chat.image: '<picture>' should hold '<"),
        ({"chat": {"assistant": "{answer}"}}, "chat.assistant: .* must be followed"),
        ({"weights": "nowhere"}, "nowhere: no model here"),
    ],
)
def test_what_does_not_fit_the_model_is_named(config, wrong, message):
    if chat := wrong.get("chat"):
        wrong = {"chat": config.chat.model_copy(update=chat)}
    with pytest.raises(ValueError, match=message):
        models.load(config.model_copy(update=wrong)).encode(ROWS[0])
