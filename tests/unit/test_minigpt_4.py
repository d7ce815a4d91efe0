"""MiniGPT-4's two forms against the released forward, written anew, and in use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from minigpt_forward import attention, example, looked, picture, spoken
from palimpsest import models
from palimpsest.config import Method, Model, load
from palimpsest.data.example import Turn
from palimpsest.evaluation.generate import answer
from palimpsest.files import read_json
from palimpsest.models import checkpoint
from palimpsest.models.families.minigpt_4 import LLAMA_2, QFORMER, VICUNA, MiniGPT4, assemble
from palimpsest.models.lmm import IGNORE
from palimpsest.models.miniatures.llava import LAYERS, PIECES
from palimpsest.models.miniatures.minigpt_4 import QFORMER_WIDTH, QUERIES, generate
from palimpsest.models.miniatures.minigpt_v2 import TOWER_WIDTH
from palimpsest.models.queries import Queries
from palimpsest.study import Manner
from palimpsest.training.loop import AnswerLoss
from workspace import LORA

CONFIG = Path(__file__).parents[2] / "config"
FORMS = ("minigpt-4-vicuna-7b", "minigpt-4-llama-2-7b")
SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I "
    "provide it to you. Please answer my questions."
)

RED = example(Turn("Which colour is it?", "red"), image=picture(0))
BLUE = example(Turn("Is it blue, green or red? Answer the question.", "blue"), image=picture(1))
TEXT = example(Turn("Is it?", "no"), Turn("Or blue?", "yes"), image=None)
ALL = (RED, TEXT, BLUE)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The published parts in small, by their roles."""
    root = tmp_path_factory.mktemp("released")
    generate(root, seed=4)
    return {path.name: path for path in root.iterdir()}


def of_form(parts, form):
    """Return the parts of which one of the two forms is made."""
    role = "checkpoint" if form == FORMS[0] else "checkpoint_llama_2"
    return {name: parts[name] for name in load(Model, form, CONFIG).parts} | {
        "checkpoint": parts[role]
    }


@pytest.fixture(scope="module", params=FORMS)
def config(request, released, tmp_path_factory):
    """A form's own config, with weights assembled of the small parts."""
    out = tmp_path_factory.mktemp("assembled") / request.param
    assemble(of_form(released, request.param), out)
    config = load(Model, request.param, CONFIG)
    own = {"weights": str(out), "precision": "fp32", "text_encoder": None}
    return config.model_copy(update=own)


@pytest.fixture(scope="module")
def lmm(config):
    lmm = models.load(config)
    lmm.module.eval()
    return lmm


@pytest.fixture
def parts(released, tmp_path):
    """A copy of the published parts that a test may spoil."""
    return {role: shutil.copytree(path, tmp_path / role) for role, path in released.items()}


def has_qformer(lmm):
    return lmm.module.config.qformer_config is not None


def read(path):
    """Return the tensors of a released file, in fp32."""
    held = torch.load(path)
    return {name: t.float() for name, t in held.get("model", held).items()}


def asked(x_PC, blip2):
    """BLIP-2's Q-Former, whose queries look at tokens in every other layer."""

    def linear(x, name):
        return F.linear(x, blip2[f"{name}.weight"], blip2[f"{name}.bias"])

    def normed(x, name):
        return F.layer_norm(x, x.shape[1:], blip2[f"{name}.weight"], blip2[f"{name}.bias"], 1e-12)

    def attended(x, source, name):
        q, k, v = (
            linear(y, f"{name}.self.{kind}")
            for y, kind in ((x, "query"), (source, "key"), (source, "value"))
        )
        y = linear(attention(q, k, v, QFORMER_WIDTH // 64), f"{name}.output.dense")
        return normed(x + y, f"{name}.output.LayerNorm")

    x = normed(blip2["query_tokens"][0], "Qformer.bert.embeddings.LayerNorm")
    for n in range(LAYERS):
        layer = f"Qformer.bert.encoder.layer.{n}"
        x = attended(x, x, f"{layer}.attention")
        if n % 2 == 0:
            x = attended(x, x_PC, f"{layer}.crossattention")
        y = linear(
            F.gelu(linear(x, f"{layer}.intermediate_query.dense")), f"{layer}.output_query.dense"
        )
        x = normed(x + y, f"{layer}.output_query.LayerNorm")
    return x


def seen(image, released, form):
    """The released picture path: EVA-ViT without its last block, norm, Q-Former or four joined."""
    x = looked(image, read(released["vision"] / "eva_vit_g.pth"), grid=2)
    if form == FORMS[0]:
        blip2 = read(released["qformer"] / QFORMER)
        x = F.layer_norm(x, x.shape[1:], blip2["ln_vision.weight"], blip2["ln_vision.bias"], 1e-5)
        x, own = asked(x, blip2), read(released["checkpoint"] / VICUNA)
    else:
        x = F.layer_norm(x, x.shape[1:], eps=1e-5)[1:].reshape(1, 4 * TOWER_WIDTH)
        own = read(released["checkpoint_llama_2"] / LLAMA_2)
    return F.linear(x, own["llama_proj.weight"], own["llama_proj.bias"])


def released_logits(lmm, released, form, one):
    """The logits of the published vocabulary, where the picture's tokens stand for its place."""
    language = {}
    for path in released["language_model"].glob("*.bin"):
        language |= read(path)
    ids = torch.tensor(lmm.encode(one).input_ids)
    places = ids == lmm.module.config.image_token_id
    x = language["model.embed_tokens.weight"][ids.masked_fill(places, 0)]
    if one.image:
        x[places] = seen(one.image, released, form)
    return spoken(x, language)[:, :PIECES]


@torch.no_grad()
def logits(lmm, examples, side="right"):
    """Return the logits of each example over the published vocabulary, without its padding."""
    batch = lmm.collate([lmm.encode(e) for e in examples], side)
    del batch["labels"]
    logits_BLV = lmm.module(**batch).logits[..., :PIECES]
    return [row[kept.bool()] for row, kept in zip(logits_BLV, batch["attention_mask"], strict=True)]


def test_logits_are_those_of_the_released_forward(released, config, lmm):
    form = Path(config.weights).name
    for one, found in zip(ALL, logits(lmm, ALL), strict=True):
        assert torch.allclose(found, released_logits(lmm, released, form, one), atol=1e-5)
    assert not torch.allclose(*(logits(lmm, [e])[0][-1] for e in (RED, BLUE)), atol=0.05)


def test_padding_changes_nothing(lmm):
    alone = [logits(lmm, [one])[0] for one in ALL]
    for side in ("left", "right"):
        for one, found in zip(alone, logits(lmm, ALL, side), strict=True):
            assert torch.allclose(found, one, atol=1e-5)


def test_the_conversation_is_the_released_one(lmm):
    """A text is read by itself on either side of a picture, as the release reads it."""
    alone = lambda text: lmm.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    before, after = (
        (f"{SYSTEM}###Human: <Img>", "</Img> Which colour is it?###Assistant:")
        if has_qformer(lmm)
        else (f"{SYSTEM}<s>[INST] <Img>", "</Img> Which colour is it? [/INST]")
    )
    picture_ids = [lmm.module.config.image_token_id] * (QUERIES if has_qformer(lmm) else 1)
    prompt = lmm.encode_prompt(RED).input_ids
    assert prompt == [1, *alone(before), *picture_ids, *alone(after)]
    encoded = lmm.encode(RED)
    learnt = alone("red###") if has_qformer(lmm) else [*alone("red"), 2]
    assert encoded.input_ids == [*prompt, *learnt]
    assert encoded.labels == [IGNORE] * len(prompt) + learnt
    assert lmm.decode(learnt) == "red"
    later = "no###Human: Or blue?###Assistant:" if has_qformer(lmm) else "[INST] Or blue? [/INST]"
    assert lmm.tokenizer.decode(lmm.encode_prompt(TEXT).input_ids).endswith(later)


def test_an_answer_ends_where_the_chat_says(lmm):
    """Vicuna v0's ### is read in two ways: generation stops at one, the text at either."""
    ids = lambda text: lmm.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    end = "###" if has_qformer(lmm) else "</s>"
    learnt = ids(f"red{end}")
    assert learnt[learnt.index(lmm.end_id) :] == ids(f"a{end}")[1:]
    assert lmm.decode(ids(f"blue{end}Human: red")) == "blue"
    assert lmm.decode(ids("blue or red")) == "blue or red"
    if has_qformer(lmm):
        assert lmm.decode(ids("blue ### red")).strip() == "blue"


class Listed(list):
    """Examples as `answer` takes them."""

    def characters(self):
        return [len(one.turns[-1].question) for one in self]


def test_answers_in_batches_are_those_given_alone(lmm):
    manner = Manner("colours", {}, 6, False)
    together = answer(lmm, Listed(ALL), manner, 3)[0]
    alone = [row for one in ALL for row in answer(lmm, Listed([one]), manner, 1)[0]]
    assert together == alone
    assert len({row["prediction"] for row in together}) == 3


def learning(config, **method):
    """Return a fresh model with a method's adapter, and what an answer's loss makes move."""
    lmm = models.load(config)
    before = logits(lmm, [RED])[0]
    method = Method.model_validate({**LORA, **method})
    adapter = checkpoint.attach(lmm, config, method)
    if method.adapter.name == "projector":
        adapter.grow(lmm.module)
    lmm.module.eval()
    assert torch.allclose(logits(lmm, [RED])[0], before, atol=1e-6)
    batch = lmm.collate([lmm.encode(e) for e in ALL], "right")
    AnswerLoss(lmm.module)(**batch)[0].backward()
    trained = {n: p.grad for n, p in lmm.module.named_parameters() if p.requires_grad}
    return adapter, {n for n, g in trained.items() if g is not None and g.abs().sum() > 0}, trained


LINEAR = "model.multi_modal_projector.linear"
KINDS = ("weight", "bias")
KEYS = {
    "name": "keys", "steps": 4, "learning_rate": 0.05, "strength": 0.1, "batch": 16, "examples": 50,
}  # fmt: skip


def test_lora_and_the_projection_learn_and_nothing_else(config):
    adapter, moving, trained = learning(config, train_projector=True)
    assert {n for n in trained if not adapter.owns(n)} == {f"{LINEAR}.{kind}" for kind in KINDS}
    # B starts at zero, so that A has no gradient yet.
    assert moving == {n for n in trained if "_B" in n or not adapter.owns(n)}
    assert len({n for n in moving if adapter.owns(n)}) == 2 * LAYERS


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ({"adapter": {"name": "subset"}}, LINEAR),
        ({"adapter": {"name": "projector"}, "router": KEYS}, f"{LINEAR}.experts.0"),
    ],
    ids=["subset", "projector"],
)
def test_the_linear_projection_is_what_learns(config, method, name):
    _, moving, trained = learning(config, **method)
    assert moving == set(trained) == {f"{name}.{kind}" for kind in KINDS}


def test_pictures_are_told_apart_behind_the_norm(released, lmm, config):
    """Keys see [CLS] as the release has it: behind `ln_vision`."""
    x = looked(RED.image, read(released["vision"] / "eva_vit_g.pth"), grid=2)[:1]
    norm = {"weight": None, "bias": None}
    if has_qformer(lmm):
        blip2 = read(released["qformer"] / QFORMER)
        norm = {kind: blip2[f"ln_vision.{kind}"] for kind in KINDS}
    expected = F.layer_norm(x, x.shape[1:], **norm, eps=1e-5)
    assert torch.allclose(Queries(lmm).of([RED])["image"], expected, atol=1e-5)


def test_half_precision_computes_alike(config, lmm):
    half = models.load(config.model_copy(update={"precision": "bf16"}))
    half.module.eval()
    found, expected = logits(half, [RED])[0], logits(lmm, [RED])[0]
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float(), expected).min() > 0.99


def test_vicunas_row_without_a_piece_is_room_for_the_picture(released, lmm):
    assert read_json(released["language_model"] / "config.json")["vocab_size"] == PIECES + 1
    config = lmm.module.config
    assert (config.image_token_id, lmm.pad_id) == (PIECES, PIECES + 1)
    assert config.text_config.vocab_size == PIECES + 64


def change(path, to=None, without=(), **new):
    """Take tensors out of a released file, put others in, rename all."""
    held = torch.load(path)
    tensors = {n: t for n, t in held["model"].items() if n not in without} | new
    torch.save({**held, "model": {to(n) if to else n: t for n, t in tensors.items()}}, path)


LN = "ln_vision.weight"


@pytest.mark.parametrize(
    ("form", "file", "spoil", "message"),
    [
        (0, VICUNA, {"without": ["llama_proj.bias"]}, "no part has tensor .*projector.linear.bias"),
        (0, VICUNA, {"other.x": torch.ones(1)}, f"{VICUNA}: tensor other.x is foreign"),
        (
            0, VICUNA, {"llama_proj.weight": torch.ones(5, 5)},
            r"tensor .*linear.weight has shape \(5, 5\), but the model's has",
        ),
        (1, LLAMA_2, {"without": ["llama_proj.weight"]}, "no part has tensor .*linear.weight"),
        (0, QFORMER, {"without": ["query_tokens"]}, f"{QFORMER}: no tensor is 'query_tokens' of a"),
        (0, QFORMER, {"without": [LN]}, "no part has tensor .*post_layernorm.weight"),
        (0, QFORMER, {"visual.x": torch.ones(1)}, f"{QFORMER}: tensor visual.x is foreign"),
        (
            0, QFORMER, {"without": ["Qformer.bert.encoder.layer.1.output_query.dense.bias"]},
            "no part has tensor .*layer.1.output_query.dense.bias",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(parts, tmp_path, form, file, spoil, message):
    (path,) = (p for part in parts.values() for p in part.glob(file))
    change(path, **spoil)
    with pytest.raises(ValueError, match=message):
        assemble(of_form(parts, FORMS[form]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_other_forms_checkpoint_is_refused(parts, tmp_path):
    parts = of_form(parts, FORMS[0])
    del parts["qformer"]
    with pytest.raises(ValueError, match=f"{LLAMA_2}: file is missing"):
        assemble(parts, tmp_path / "out")


def test_a_pickle_that_runs_code_is_refused(parts, tmp_path):
    torch.save({"model": Path("x")}, parts["checkpoint"] / VICUNA)
    with pytest.raises(ValueError, match=f"{VICUNA}: no torch file of plain tensors"):
        assemble(of_form(parts, FORMS[0]), tmp_path / "out")


def test_of_what_two_files_hold_the_later_counts(parts, tmp_path):
    """As the release loads them, one after the other."""
    change(parts["checkpoint"] / VICUNA, **{LN: torch.full((TOWER_WIDTH,), 2.0)})
    assemble(of_form(parts, FORMS[0]), out := tmp_path / "out")
    name = "model.vision_tower.post_layernorm.weight"
    (path,) = (p for p in out.glob("*.safetensors") if name in load_file(p))
    assert (load_file(path)[name] == 2).all()


def test_a_chat_without_an_end_is_refused(lmm):
    chat = lmm.config.chat.model_copy(update={"assistant": "Assistant: {answer}"})
    config = lmm.config.model_copy(update={"chat": chat})
    with pytest.raises(ValueError, match=r"chat\.assistant: \{answer\} must be followed by"):
        MiniGPT4(config, lmm.module, lmm.tokenizer, lmm.image_processor)
