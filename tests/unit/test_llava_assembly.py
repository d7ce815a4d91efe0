"""LLaVA-1.5 from its published parts: every tensor in its place, and the tokens of the release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from palimpsest import models
from palimpsest.config import Model, load
from palimpsest.data.example import Example, Turn, black
from palimpsest.methods.adapter import target_layers
from palimpsest.models import assembly
from palimpsest.models.families.llava import assemble
from palimpsest.models.lmm import IGNORE
from palimpsest.models.miniatures.llava import LAYERS, PIECES, generate

CONFIG = Path(__file__).parents[2] / "config"
RED = Example("red", black((40, 20)), (Turn("Which colour is it?", "red"),), ("red",))
TEXT = Example("text", None, (Turn("Is it?", "no"), Turn("Or blue?", "yes")), ("yes",))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The published parts in small, by their roles."""
    root = tmp_path_factory.mktemp("released")
    generate(root, seed=3)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def lmm(released, tmp_path_factory):
    """What is assembled of them, loaded as LLaVA-1.5 7B is."""
    out = tmp_path_factory.mktemp("assembled") / "llava"
    assemble(released, out)
    config = load(Model, "llava-1.5-7b", CONFIG)
    lmm = models.load(config.model_copy(update={"weights": str(out), "precision": "fp32"}))
    lmm.module.eval()
    return lmm


@pytest.fixture
def parts(released, tmp_path):
    """A copy of the published parts that a test may spoil."""
    return {role: shutil.copytree(path, tmp_path / role) for role, path in released.items()}


def pickled(directory):
    files = sorted(directory.glob("*.bin"))
    return {name: t for file in files for name, t in torch.load(file).items()}


def composed(released, input_ids, image_id, pixel_values):
    """Put the published parts together by hand: what comes out of the language model, h_LD."""
    clip = CLIPModel(CLIPConfig.from_pretrained(released["vision"])).eval()
    clip.load_state_dict(pickled(released["vision"]), strict=False)
    language = LlamaForCausalLM(LlamaConfig.from_pretrained(released["language_model"])).eval()
    language.load_state_dict(pickled(released["language_model"]), strict=False)
    projector = {n: t.float() for n, t in pickled(released["projector"]).items()}
    first, second = (
        [projector[f"model.mm_projector.{n}.{kind}"] for kind in ("weight", "bias")] for n in (0, 2)
    )
    with torch.no_grad():
        seen = clip.vision_model(pixel_values, output_hidden_states=True).hidden_states[-2][0, 1:]
        seen = F.linear(F.gelu(F.linear(seen, *first)), *second)
        ids = torch.tensor(input_ids)
        start = input_ids.index(image_id)
        embed = language.model.embed_tokens
        words = [embed(ids[:start]), seen, embed(ids[start + len(seen) :])]
        inputs_embeds = torch.cat(words).unsqueeze(0)
        return language.model(inputs_embeds=inputs_embeds).last_hidden_state[0], language


def test_hidden_states_and_logits_are_those_of_the_parts(released, lmm):
    encoded = lmm.encode(RED)
    batch = lmm.collate([encoded], "right")
    del batch["labels"]
    with torch.no_grad():
        hidden_LD = lmm.module.base_model(**batch).last_hidden_state[0]
        logits_LV = lmm.module(**batch).logits[0]
        image_id = lmm.module.config.image_token_id
        expected_LD, language = composed(
            released, encoded.input_ids, image_id, batch["pixel_values"]
        )
        assert torch.allclose(hidden_LD, expected_LD, atol=1e-5)
        expected_LV = language.lm_head(expected_LD)
    assert torch.allclose(logits_LV[:, :PIECES], expected_LV, atol=1e-5)
    # The new rows' logits are the mean of the others, and none of them is ever the largest.
    mean_L = expected_LV.mean(dim=1)
    assert torch.allclose(logits_LV[:, PIECES:], mean_L[:, None].expand(-1, 64), atol=1e-3)
    assert (logits_LV.argmax(dim=1) < PIECES).all()


def test_the_config_is_that_of_the_conversions(lmm):
    config = lmm.module.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.image_token_id, lmm.pad_id, lmm.end_id) == (PIECES, PIECES + 1, 2)
    assert config.text_config.vocab_size == PIECES + 64
    assert lmm.image_length == config.image_seq_length == 4
    assert lmm.module.dtype == torch.float32


def test_the_tokens_are_those_of_pieces_read_by_themselves(lmm):
    """LLaVA's code reads what stands before the picture, and after it, each by itself."""
    alone = lambda text: lmm.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    system = lmm.config.chat.system.removeprefix("<s>")
    image = [lmm.module.config.image_token_id] * 4
    encoded = lmm.encode(RED)
    answer = [*alone("red"), 2]
    prompt = [1, *alone(f"{system}USER: "), *image, *alone(f"\n{RED.turns[0].question} ASSISTANT:")]
    assert encoded.input_ids == prompt + answer
    assert encoded.labels == [IGNORE] * len(prompt) + answer
    assert lmm.encode_prompt(RED).input_ids == prompt
    assert lmm.decode(answer) == "red"

    first, second = TEXT.turns
    turns = [1, *alone(f"{system}USER: {first.question} ASSISTANT: no"), 2]
    turns += [*alone(f"USER: {second.question} ASSISTANT: yes"), 2]
    assert lmm.encode(TEXT).input_ids == turns


def test_a_blank_stands_before_each_text_and_bytes_for_what_has_no_piece(released):
    tokenizer = assembly.llama_tokenizer(released["language_model"], "<image>")
    assert tokenizer.tokenize("A chat") == ["▁A", "▁ch", "at"]
    assert tokenizer.tokenize("é\n") == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert tokenizer.tokenize("no  USER<image>no")[:3] == ["▁no", "▁", "▁USER"]
    assert tokenizer.tokenize("no<image>no") == ["▁no", "<image>", "▁no"]
    text = "The object: {[(0.12, 0.5)]}\n\tis ~ é 漢?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_a_picture_becomes_a_square_of_28_pixels(lmm):
    assert lmm.encode(RED).pictures["pixel_values"].shape == (1, 3, 28, 28)


def test_adapters_go_on_all_linear_layers_of_the_language_model_but_its_head(lmm):
    found = target_layers(lmm.module, lmm.config.adapter_targets)
    assert len(found) == 7 * LAYERS
    assert all(name.startswith("model.language_model.layers.") for name in found)
    assert lmm.module.get_submodule(lmm.config.projector).linear_1.weight.shape == (32, 32)


def test_shards_are_written_as_they_fill(released, lmm, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "SHARD_BYTES", 20_000)
    assemble(released, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 5
    again = models.load(lmm.config.model_copy(update={"weights": str(tmp_path / "out")}))
    for (name, one), other in zip(
        lmm.module.state_dict().items(), again.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def change(file, names=(), **new):
    """Take tensors out of a pickle, and put others in."""
    held = torch.load(file)
    torch.save({n: t for n, t in held.items() if n not in names} | new, file)


def missing_layer(parts):
    change(parts["projector"] / "mm_projector.bin", ["model.mm_projector.2.bias"])


def foreign_tensor(parts):
    change(parts["vision"] / "pytorch_model.bin", other=torch.ones(1))


def lacking_shard(parts):
    next(parts["language_model"].glob("pytorch_model-00002*")).unlink()


def wrong_width(parts):
    wide = {"model.mm_projector.0.weight": torch.ones(32, 48)}
    change(parts["projector"] / "mm_projector.bin", **wide)


def other_tokenizer(parts):
    config = parts["language_model"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": PIECES + 5}))


def no_projector(parts):
    del parts["projector"]


def broken_pickle(parts):
    path = parts["vision"] / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])


def broken_tokenizer(parts):
    (parts["language_model"] / "tokenizer.model").write_bytes(b"\x0b nothing")


def no_tokenizer(parts):
    (parts["language_model"] / "tokenizer.model").unlink()


def no_config(parts):
    (parts["vision"] / "config.json").unlink()


def no_weights(parts):
    (parts["vision"] / "pytorch_model.bin").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_layer, "no part has tensor model.multi_modal_projector.linear_2.bias"),
        (foreign_tensor, r"vision: tensor other is foreign"),
        (lacking_shard, r"no part has tensor .*language_model.* are missing"),
        (wrong_width, r"linear_1.weight has shape \(32, 48\), but the model's has \(32, 32\)"),
        (other_tokenizer, "tokenizer.model has 512 pieces, but config.json says vocab_size 517"),
        (no_projector, "parts: projector is missing"),
        (broken_pickle, "pytorch_model.bin: no torch file of plain tensors"),
        (broken_tokenizer, "tokenizer.model: not a sentencepiece model"),
        (no_tokenizer, "tokenizer.model: file is missing"),
        (no_config, "vision/config.json: file is missing"),
        (no_weights, "vision: neither model"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(parts, tmp_path, spoil, message):
    spoil(parts)
    with pytest.raises(ValueError, match=message):
        assemble(parts, tmp_path / "out" / "llava")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
