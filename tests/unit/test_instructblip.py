"""InstructBLIP and BLIP-2 against transformers' own forward, in use, and assembled from parts."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    InstructBlipConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.blip_2.modeling_blip_2 import Blip2ForConditionalGeneration
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipForConditionalGeneration,
)

from palimpsest import models
from palimpsest.config import Method, Model, load
from palimpsest.data.example import Example, Turn, black
from palimpsest.evaluation import generate as evaluation
from palimpsest.methods.adapter import target_layers
from palimpsest.models import checkpoint
from palimpsest.models.families.instructblip import assemble
from palimpsest.models.lmm import IGNORE
from palimpsest.models.miniatures.instructblip import QUERIES, generate
from palimpsest.training import memory
from palimpsest.training.loop import AnswerLoss
from workspace import LORA

CONFIG = Path(__file__).parents[2] / "config"
SIDE = 28  # pixels
SUBSET = Method.model_validate({**LORA, "adapter": {"name": "subset"}})
CHECKPOINT = "blip2_pretrained_vicuna7b.pth"


def picture(seed, width=70, height=40):
    """Return a picture of noise, as a PNG file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(*turns, image):
    return Example("e", image, turns, (turns[-1].answer,))


RED = example(Turn("Which colour is it?", "red"), image=picture(0))
BLUE = example(Turn("Is it blue, green or red? Answer the question.", "blue"), image=picture(1))
TWO = example(Turn("What is it?", "no chat"), Turn("Which is it?", "yes"), image=picture(2, 30, 60))
ROWS = [RED, BLUE, TWO]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The published parts in small, by their roles."""
    root = tmp_path_factory.mktemp("released")
    generate(root, seed=4)
    return {path.name: path for path in root.iterdir()}


def put_together(name, parts, out):
    """Return a model's own config, but that its weights are assembled of small parts."""
    assemble(parts, out)
    config = load(Model, name, CONFIG)
    return config.model_copy(update={"weights": str(out), "precision": "fp32", "revision": None})


def byte_tokenizer():
    """Return a tokenizer as OPT's: bytes, of which a line's end is one."""
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>"}
    learnt = Tokenizer(BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<unk>", "<pad>", "</s>", "<image>"],
        show_progress=False,
    )
    learnt.train_from_iterator(["Question: Which colour is it? Answer: red blue"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=learnt, **special)


def save_blip2(name, path, released):
    """Save a BLIP-2 with OPT, whose tower and Q-Former have the sizes of the miniature's."""
    sizes = InstructBlipConfig.from_pretrained(released["instructblip"])
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)
    shutil.copy(released["instructblip"] / "preprocessor_config.json", path)
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = Blip2Config(
        vision_config=sizes.vision_config.to_dict() | {"model_type": "blip_2_vision_model"},
        qformer_config=sizes.qformer_config.to_dict() | {"model_type": "blip_2_qformer"},
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    module = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for weights in (p for p in module.parameters() if p.dim() > 1):
            weights.normal_(std=2 * weights.shape[-1] ** -0.5)
    module.save_pretrained(path)
    config = load(Model, name, CONFIG)
    return config.model_copy(update={"weights": str(path), "precision": "fp32", "revision": None})


@pytest.fixture(scope="module", params=["instructblip-vicuna-7b-pretrained", "blip2-opt-2.7b"])
def config(request, released, tmp_path_factory):
    """The config of each model, but that its weights are small and random."""
    path = tmp_path_factory.mktemp("model")
    if request.param.startswith("blip2"):
        return save_blip2(request.param, path, released)
    return put_together(request.param, released, path / "made")


@pytest.fixture(scope="module")
def lmm(config):
    lmm = models.load(config)
    lmm.module.eval()
    return lmm


@pytest.fixture(scope="module")
def stock(lmm):
    """The same weights in transformers' own class."""
    is_blip2 = lmm.module.config.model_type == "blip-2"
    kind = Blip2ForConditionalGeneration if is_blip2 else InstructBlipForConditionalGeneration
    return kind.from_pretrained(lmm.config.weights).eval()


def inputs(lmm, rows, side="right"):
    encode = lmm.encode if side == "right" else lmm.encode_prompt
    batch = lmm.collate([encode(row) for row in rows], side)
    return batch, batch.pop("labels")


@pytest.mark.parametrize("row", ROWS)
def test_the_answers_and_their_ends_are_learnt_and_nothing_else(lmm, row):
    encoded = lmm.encode(row)
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (IGNORE, token) for token, label in pairs)
    runs = [list(run) for learnt, run in groupby(encoded.labels, lambda t: t != IGNORE) if learnt]
    assert all(run[-1] == lmm.end_id for run in runs)
    assert [lmm.tokenizer.decode(run[:-1]).strip() for run in runs] == [t.answer for t in row.turns]


@pytest.mark.parametrize("row", ROWS)
def test_the_prompt_is_how_the_conversation_begins(lmm, row):
    whole, prompt = lmm.encode(row), lmm.encode_prompt(row)
    length = len(prompt.input_ids)
    assert prompt.input_ids == whole.input_ids[:length]
    assert prompt.texts == whole.texts
    assert set(prompt.labels) == {IGNORE}
    assert whole.labels[length:] == whole.input_ids[length:]


def test_the_picture_comes_first_then_the_token_that_begins_a_text(lmm):
    ids = lmm.encode(RED).input_ids
    picture_id, first = lmm.module.config.image_token_id, lmm.tokenizer.bos_token_id
    assert ids[: QUERIES + 1] == [picture_id] * QUERIES + [first]
    assert ids.count(picture_id) == QUERIES == lmm.image_length


def test_a_picture_is_squashed_into_a_square(lmm):
    pixels = Image.open(BytesIO(TWO.image)).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)
    wanted = (np.asarray(pixels) / 255 - OPENAI_CLIP_MEAN) / OPENAI_CLIP_STD
    found = lmm.encode(TWO).pictures["pixel_values"]
    wanted = torch.tensor(wanted, dtype=torch.float).permute(2, 0, 1)
    assert torch.allclose(found[0], wanted, atol=1e-5)
    padded = models.load(lmm.config.model_copy(update={"pictures": "pad"})).encode(TWO)
    edge = padded.pictures["pixel_values"][0, :, :, 0]
    assert edge.abs().max() < 0.02  # the mean colour


def read_by_qformer(lmm, encoded):
    return lmm.qformer_tokenizer.decode(encoded.texts["qformer_input_ids"])


def test_the_qformer_reads_the_questions_and_no_answer(lmm):
    encoded = lmm.encode(TWO)
    if lmm.qformer_tokenizer is None:
        assert not encoded.texts
        return
    assert read_by_qformer(lmm, encoded) == "[CLS] what is it? which is it? [SEP]"
    assert set(encoded.texts["qformer_attention_mask"]) == {1}
    long = example(Turn("yes " * 99 + "no " * 61 + "blue", "yes"), image=picture(0))
    read = read_by_qformer(lmm, lmm.encode(long))
    assert read == "[CLS] " + "no " * 61 + "blue [SEP]"  # 64 tokens, as many as it has places for
    assert len(lmm.encode(long).input_ids) > 99


def test_the_qformer_s_text_is_padded_by_itself(lmm):
    for side in ("left", "right"):
        batch, _ = inputs(lmm, ROWS, side)
        own = {name for name in batch if name.startswith("qformer")}
        if lmm.qformer_tokenizer is None:
            assert not own
            continue
        rows = [lmm.encode(row).texts["qformer_input_ids"] for row in ROWS]
        wanted = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
        assert torch.equal(batch["qformer_input_ids"], wanted)
        assert torch.equal(batch["qformer_attention_mask"], (wanted != 0).long())


def losses(lmm, rows):
    """Return the summed loss of some rows as one batch."""
    return AnswerLoss(lmm.module)(**lmm.collate([lmm.encode(row) for row in rows], "right"))[0]


@torch.no_grad()
def test_the_loss_is_that_of_transformers_own_forward(lmm, stock):
    batch, labels_BL = inputs(lmm, ROWS)
    logits = stock(**batch).logits[:, :-1].flatten(0, 1)
    wanted = F.cross_entropy(logits, labels_BL[:, 1:].flatten(), reduction="sum")
    assert losses(lmm, ROWS).item() == pytest.approx(wanted.item(), rel=1e-5)


@torch.no_grad()
def test_a_batch_has_the_sum_of_the_losses_of_its_rows(lmm):
    alone = [losses(lmm, [row]).item() for row in ROWS]
    assert losses(lmm, ROWS).item() == pytest.approx(sum(alone), rel=1e-4)
    assert losses(lmm, ROWS[::-1]).item() == pytest.approx(sum(alone), rel=1e-4)


@torch.no_grad()
def test_the_question_reaches_the_language_model_by_the_qformer_too(lmm):
    batch, _ = inputs(lmm, [RED])
    other, _ = inputs(lmm, [replace(RED, turns=(Turn("Is it blue, or what?", "red"),))])
    changed = {n: other[n] if n.startswith("qformer") else t for n, t in batch.items()}
    same = torch.equal(
        lmm.module(**batch).last_hidden_state, lmm.module(**changed).last_hidden_state
    )
    assert same == (lmm.qformer_tokenizer is None)


def test_an_answer_depends_on_the_question_and_its_picture_alone(lmm):
    looked = [replace(RED, image=picture(seed)) for seed in range(4)]
    rows = [*ROWS, *looked]

    def answers(rows):
        return evaluation._generate(lmm, [lmm.encode_prompt(row) for row in rows], None, 6)

    together = answers(rows)
    assert together == [answers([row])[0] for row in rows]
    assert len({tuple(answer) for answer in together[3:]}) > 1


def test_it_goes_on_from_the_prompt_with_the_likeliest_tokens(lmm, stock):
    batch, _ = inputs(lmm, ROWS, "left")
    settings = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": lmm.pad_id}
    found = lmm.module.generate(**batch, eos_token_id=None, **settings)
    grown = dict(batch)
    for _ in range(5):
        with torch.no_grad():
            mask_BL = grown["attention_mask"]
            best = [
                stock(**{n: t[k : k + 1] for n, t in grown.items() if n != "attention_mask"
                         and n != "input_ids"},
                      input_ids=grown["input_ids"][k : k + 1][:, mask_BL[k].bool()],
                      attention_mask=mask_BL[k : k + 1][:, mask_BL[k].bool()],
                      ).logits[:, -1].argmax(-1, keepdim=True)
                for k in range(len(ROWS))
            ]  # fmt: skip
        grown["input_ids"] = torch.cat([grown["input_ids"], torch.cat(best)], dim=1)
        grown["attention_mask"] = F.pad(mask_BL, (0, 1), value=1)
    assert torch.equal(found, grown["input_ids"])
    assert len(found[:, -5:].unique()) > 3


def test_an_example_without_a_picture_is_refused_by_name(lmm):
    with pytest.raises(ValueError, match=r"e: has no picture, and a (instructblip|blip-2) reads"):
        lmm.encode(replace(RED, image=None))
    blank = Example("blank", black((64, 64)), (Turn("", ""),), ())
    assert lmm.encode(blank).pictures["pixel_values"].shape == (1, 3, SIDE, SIDE)


PARTS = ("query_tokens", "qformer.", "language_projection.")


def test_query_tokens_qformer_and_projection_learn_and_are_kept(config, tmp_path):
    lmm = models.load(config)
    before = {n: p.detach().clone() for n, p in lmm.module.named_parameters()}
    part = checkpoint.attach(lmm, config, SUBSET)
    trained = {n: p for n, p in lmm.module.named_parameters() if p.requires_grad}
    assert trained.keys() == {n for n in before if n.startswith(PARTS)}
    optimiser = torch.optim.Adam(trained.values(), lr=0.01)
    lmm.module.eval()  # without dropout
    found = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = losses(lmm, ROWS)
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert found[-1] < 0.95 * found[0]
    moved = {n for n, p in lmm.module.named_parameters() if not torch.equal(p, before[n])}
    # The text's way through the Q-Former ends with its last layer, where no query looks at it.
    last = lmm.module.config.qformer_config.num_hidden_layers - 1
    unread = re.compile(rf"qformer\.encoder\.layer\.{last}\.(intermediate|output)\..*")
    unlearnt = {n for n in trained.keys() - moved if not unread.fullmatch(n)}
    assert moved <= trained.keys()
    assert unlearnt <= {"qformer.embeddings.word_embeddings.weight"}

    checkpoint.save({n: p.detach() for n, p in trained.items()}, tmp_path, lmm, config, part)
    again = models.load(config)
    attached = checkpoint.attach(again, config, SUBSET)
    checkpoint.load(again, tmp_path, config, SUBSET, attached)
    again.module.eval()
    with torch.no_grad():
        assert losses(again, ROWS) == losses(lmm, ROWS)
        attached.merge(again.module)
        assert losses(again, ROWS) == losses(lmm, ROWS)


@pytest.mark.parametrize("method", [SUBSET, Method.model_validate(LORA)], ids=["subset", "lora"])
def test_a_model_in_bf16_learns(config, method):
    config = config.model_copy(update={"precision": "bf16"})
    lmm = models.load(config)
    checkpoint.attach(lmm, config, method)
    losses(lmm, ROWS).backward()
    trained = {n: p for n, p in lmm.module.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)
    batch, _ = inputs(lmm, ROWS, "left")
    assert lmm.module.generate(**batch, max_new_tokens=2).shape[0] == len(ROWS)


def test_adapters_go_on_the_language_model(lmm):
    found = target_layers(lmm.module, lmm.config.adapter_targets)
    assert len(found) == 2 * (6 if lmm.module.config.model_type == "blip-2" else 7)
    assert all(name.startswith("language_model.model.") for name in found)


def test_the_memory_of_a_stage_is_estimated(lmm):
    needs = memory.needs(lmm, ROWS, held=0)
    longest = max(len(lmm.encode(row).input_ids) for row in ROWS)
    assert needs.tokens == longest
    assert needs.further > longest * lmm.module.config.get_text_config().hidden_size * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pictures": "crop"}, "'crop' is no way"),
        ({"pictures": {"max_pixels": 9}}, "no setting of a BlipImageProcessorPil"),
        ({"chat": {"image": "<picture>"}}, "chat.image: '<picture>' should hold '<image>'"),
        ({"chat": {"assistant": "{answer}"}}, "chat.assistant: .* must be followed"),
        ({"weights": "nowhere"}, "nowhere: no model here"),
    ],
)
def test_what_does_not_fit_the_model_is_named(config, wrong, message):
    if chat := wrong.get("chat"):
        wrong = {"chat": config.chat.model_copy(update=chat)}
    with pytest.raises(ValueError, match=message):
        models.load(config.model_copy(update=wrong))


def test_a_language_model_that_also_encodes_is_refused(config, tmp_path):
    Blip2Config(text_config=T5Config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a blip-2 of a t5 is none of instructblip, blip-2"):
        models.load(config.model_copy(update={"weights": str(tmp_path)}))


@pytest.fixture
def parts(released, tmp_path):
    """A copy of the published parts that a test may spoil."""
    return {role: shutil.copytree(path, tmp_path / role) for role, path in released.items()}


def read(directory):
    found = {}
    for path in directory.glob("model*.safetensors"):
        found |= load_file(path)
    return found


# LAVIS's name of one tensor of each kind, and transformers'.
NAMES = {
    "query_tokens": "query_tokens",
    "ln_vision.bias": "vision_model.post_layernorm.bias",
    "llm_proj.weight": "language_projection.weight",
    "Qformer.bert.embeddings.LayerNorm.weight": "qformer.embeddings.layernorm.weight",
    "Qformer.bert.encoder.layer.1.attention.self.query.bias":
        "qformer.encoder.layer.1.attention.attention.query.bias",
    "Qformer.bert.encoder.layer.0.attention.output.dense.weight":
        "qformer.encoder.layer.0.attention.output.dense.weight",
    "Qformer.bert.encoder.layer.0.crossattention.self.key.weight":
        "qformer.encoder.layer.0.crossattention.attention.key.weight",
    "Qformer.bert.encoder.layer.0.crossattention.output.LayerNorm.bias":
        "qformer.encoder.layer.0.crossattention.output.LayerNorm.bias",
    "Qformer.bert.encoder.layer.1.intermediate_query.dense.weight":
        "qformer.encoder.layer.1.intermediate_query.dense.weight",
    "Qformer.bert.encoder.layer.1.output_query.LayerNorm.weight":
        "qformer.encoder.layer.1.output_query.LayerNorm.weight",
}  # fmt: skip
OF_TEXT = re.compile(r"qformer\.(embeddings\..*_embeddings|.*\.\d\.(intermediate|output))\..*")


def test_blip2_s_tensors_are_written_over_instructblip_s(released, tmp_path):
    assemble(released, tmp_path / "out")
    earlier = torch.load(released["blip2"] / CHECKPOINT)["model"]
    own, made = read(released["instructblip"]), read(tmp_path / "out")
    assert made.keys() == own.keys()
    assert all(torch.equal(made[ours], earlier[theirs]) for theirs, ours in NAMES.items())
    # All that the file has is in the model, and all else is InstructBLIP's.
    changed = {name for name in own if not torch.equal(own[name].float(), made[name].float())}
    assert len(changed) == len(earlier) - 1  # without position_ids
    parts = (*PARTS, "vision_model.post_layernorm.")
    expected = {n for n in own if n.startswith(parts) and not OF_TEXT.fullmatch(n)}
    assert changed == expected


def test_without_blip2_it_is_the_released_model(released, tmp_path):
    assemble({"instructblip": released["instructblip"]}, tmp_path / "out")
    own, made = read(released["instructblip"]), read(tmp_path / "out")
    assert made.keys() == own.keys()
    assert all(torch.equal(own[name], made[name]) for name in own)


def test_what_old_versions_stored_besides_is_left_out(parts, tmp_path):
    path = next(parts["instructblip"].glob("model-*.safetensors"))
    more = {
        "qformer.embeddings.position_ids": torch.arange(64).unsqueeze(0),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    save_file(load_file(path) | more, path)
    assemble(parts, tmp_path / "out")
    assert not read(tmp_path / "out").keys() & more.keys()


def change(parts, without=(), **new):
    """Take tensors out of BLIP-2's file and put others in."""
    path = parts["blip2"] / CHECKPOINT
    held = torch.load(path)["model"]
    torch.save({"model": {n: t for n, t in held.items() if n not in without} | new}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"without": ["llm_proj.bias"]}, "tensor language_projection.bias is missing"),
        ({"visual.x": torch.ones(1)}, f"{CHECKPOINT}: tensor visual.x is foreign"),
        ({"Qformer.bert.x": torch.ones(1)}, "tensor qformer.x has no place in the model"),
        ({"query_tokens": torch.ones(1, 2, 16)}, "tensor query_tokens has shape"),
        (
            {"without": ["Qformer.bert.encoder.layer.0.attention.output.dense.bias"]},
            "tensor qformer.encoder.layer.0.attention.output.dense.bias is missing",
        ),
    ],
)
def test_what_is_wrong_with_blip2_s_file_is_named(parts, tmp_path, spoil, message):
    change(parts, **spoil)
    with pytest.raises(ValueError, match=message):
        assemble(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_that_are_missing_are_named(parts, tmp_path):
    with pytest.raises(ValueError, match="parts: instructblip is missing"):
        assemble({"blip2": parts["blip2"]}, tmp_path / "out")
    (parts["blip2"] / CHECKPOINT).unlink()
    with pytest.raises(ValueError, match=f"{CHECKPOINT}: file is missing"):
        assemble(parts, tmp_path / "out")
    shutil.rmtree(parts["instructblip"] / "qformer_tokenizer")
    with pytest.raises(ValueError, match=r"qformer_tokenizer/tokenizer.json: file is missing"):
        assemble({"instructblip": parts["instructblip"]}, tmp_path / "out")


def test_the_whole_q_former_of_a_file_is_taken_if_it_has_that(parts, tmp_path):
    """The files of stage 1, and of a tuned InstructBLIP, have what reads text."""
    words = torch.full_like(
        read(parts["instructblip"])["qformer.embeddings.word_embeddings.weight"], 0.5
    )
    change(parts, **{"Qformer.bert.embeddings.word_embeddings.weight": words})
    assemble(parts, tmp_path / "out")
    made = read(tmp_path / "out")["qformer.embeddings.word_embeddings.weight"]
    assert torch.equal(made, words)
