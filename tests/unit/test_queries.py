"""Queries: a picture's [CLS] and a text's embedding, each of its own example alone."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

from palimpsest import models
from palimpsest.config import Model, TextEncoder, load
from palimpsest.data.example import Example, Turn
from palimpsest.models.families import instructblip, minigpt_v2
from palimpsest.models.miniatures import instructblip as small_instructblip
from palimpsest.models.miniatures import minigpt_v2 as small_minigpt_v2
from palimpsest.models.queries import Queries
from palimpsest.models.text_encoder import Bert
from workspace import MODEL, save_tiny_model

CONFIG = Path(__file__).parents[2] / "config"
WORDS = ["what", "which", "colour", "is", "it", "the", "of", "red", "blue", "read", "how", "many"]
TINY = MODEL | {"tower": "model.vision_tower"}


def picture(seed, side=40):
    """A picture of noise, as a PNG file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(seed, *questions):
    return Example("e", picture(seed), tuple(Turn(q, "red") for q in questions), ("red",))


ROWS = [
    example(0, "Which colour is it?"),
    example(1, "Which colour is it?"),
    example(0, "Is it blue?", "How many?"),
    example(2, "Read the letters of the sign."),
]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_model(path)
    return models.load(Model.model_validate(TINY | {"weights": str(path)}))


@pytest.fixture(scope="module", params=["llava", "instructblip-vicuna-7b", "minigpt-v2"])
def lmm(request, tmp_path_factory):
    """A model of each family whose published configs name a tower, with random weights."""
    if request.param == "llava":
        return request.getfixturevalue("llava")
    family, small = {
        "instructblip-vicuna-7b": (instructblip, small_instructblip),
        "minigpt-v2": (minigpt_v2, small_minigpt_v2),
    }[request.param]
    made, out = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("model")
    small.generate(made)
    config = load(Model, request.param, CONFIG)
    family.assemble({name: made / name for name in config.parts}, out)
    own = {"weights": str(out), "precision": "fp32", "text_encoder": None}
    return models.load(config.model_copy(update=own))


def test_a_query_is_of_its_own_picture_and_question(lmm):
    found = Queries(lmm).of(ROWS)
    image, instruction = found["image"], found["instruction"]
    width = lmm.module.config.vision_config.hidden_size
    assert (image.shape, image.dtype) == ((4, width), torch.float32)
    text_width = lmm.module.get_input_embeddings().weight.shape[1]
    assert (instruction.shape, instruction.dtype) == ((4, text_width), torch.float32)
    assert not image.requires_grad
    assert not instruction.requires_grad
    assert torch.allclose(image[0], image[2], atol=1e-5)  # the same picture
    assert not torch.allclose(image[0], image[1], atol=1e-3)
    assert torch.equal(instruction[0], instruction[1])  # the same question
    last = replace(ROWS[2], turns=ROWS[2].turns[-1:])
    assert torch.equal(instruction[2], Queries(lmm).of([last])["instruction"][0])
    for row, alone in enumerate(ROWS):
        for name, query in Queries(lmm).of([alone]).items():
            assert torch.allclose(query[0], found[name][row], atol=1e-5)


def test_the_picture_is_seen_as_the_model_sees_it(llava):
    """The query is the first token after the last layer, when the model itself looks."""
    seen = []
    layer = llava.module.model.vision_tower.encoder.layers[-1]
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    prompts = [llava.encode_prompt(row) for row in ROWS]
    batch = llava.collate(prompts, "left")
    batch.pop("labels")
    with torch.no_grad():
        llava.module.base_model(**batch)
    hook.remove()
    assert torch.equal(Queries(llava).of(ROWS, prompts)["image"], seen[0][:, 0])


def test_what_projectors_take_has_a_row_for_each_picture(lmm):
    """Experts of a projector share its input out by rows."""
    taken = []
    projector = lmm.module.get_submodule(lmm.config.projector)
    hook = projector.register_forward_hook(
        lambda _, inputs, output: taken.append((*inputs, output))
    )
    batch = lmm.collate([lmm.encode_prompt(row) for row in ROWS], "left")
    batch.pop("labels")
    with torch.no_grad():
        lmm.module.base_model(**batch)
    hook.remove()
    assert [(len(x), len(y)) for x, y in taken] == [(4, 4)]


def test_without_a_picture_the_query_is_zeros(llava):
    blind = [replace(row, image=None) for row in ROWS]
    mixed = [ROWS[0], blind[1], ROWS[3]]
    queries = Queries(llava)
    found, alone = queries.of(mixed), queries.of(blind)
    assert (found["image"] != 0).any(1).tolist() == [True, False, True]
    assert torch.equal(alone["image"], torch.zeros(4, 16))
    assert torch.equal(alone["instruction"], queries.of(ROWS)["instruction"])


def test_without_an_encoder_a_text_is_the_mean_of_its_embeddings(llava):
    table_VD = llava.module.get_input_embeddings().weight
    ids = llava.tokenizer("Which colour is it?", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    found = Queries(llava).texts(["Which colour is it?", ""])
    assert torch.allclose(found[0], table_VD[ids].mean(0), atol=1e-6)
    assert torch.equal(found[1], torch.zeros(32))


def test_a_tower_that_is_not_there_is_refused(llava):
    config = llava.config
    llava.config = config.model_copy(update={"tower": "model.tower"})
    with pytest.raises(ValueError, match=r"tower: 'model.tower' is no module of a Llava.*config"):
        Queries(llava)
    llava.config = config


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A directory as that of bert-base-uncased on the hub, and the module in it."""
    path = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = {word: n for n, word in enumerate([*special, *WORDS])}
    BertTokenizerFast(vocab=tokens).save_pretrained(path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokens),
        num_hidden_layers=2,
        max_position_embeddings=128,
        architectures=["BertForMaskedLM"],
        **sizes,
    )
    config.save_pretrained(path)
    torch.manual_seed(0)
    module = BertForPreTraining(config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # the norms, too
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    weights = {}
    for name, tensor in module.state_dict().items():
        for new, then in old.items():
            name = name.replace(new, then)
        if name != "cls.predictions.decoder.weight" and "decoder.bias" not in name:
            weights[name] = tensor.clone()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path, module.bert, tokens


def test_a_text_encoder_gives_cls_of_the_last_128_tokens(bert):
    path, module, tokens = bert
    encoder = Bert(TextEncoder(weights=str(path)))
    words = np.random.default_rng(0).choice(WORDS, 300).tolist()
    texts = ["Which colour is IT", " ".join(words), "read"]
    found = encoder(texts)
    assert found.shape == (3, 16)
    for row, kept in enumerate((["which", "colour", "is", "it"], words[-126:], ["read"])):
        ids = [tokens["[CLS]"], *(tokens[word] for word in kept), tokens["[SEP]"]]
        with torch.no_grad():
            wanted = module(torch.tensor([ids])).last_hidden_state[0, 0]
        assert torch.allclose(found[row], wanted, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-2)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_a_model_with_a_text_encoder_asks_it(llava, bert):
    config = llava.config
    encoder = TextEncoder(weights=str(bert[0]))
    llava.config = config.model_copy(update={"text_encoder": encoder})
    found = Queries(llava).of(ROWS[:2])["instruction"]
    llava.config = config
    assert torch.equal(found, Bert(encoder)(["Which colour is it?"] * 2))
    assert found.shape == (2, 16)


def test_a_text_encoder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model here \(config.json is missing\)"):
        Bert(TextEncoder(weights=str(tmp_path)))
