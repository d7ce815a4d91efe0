"""What questions about one picture begin with is computed once, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from minigpt_forward import example, picture
from palimpsest import models
from palimpsest.config import Model, load
from palimpsest.data.example import Turn
from palimpsest.evaluation import prefix
from palimpsest.models import pictures
from palimpsest.models.lmm import Encoded

CONFIG = Path(__file__).parents[2] / "config"
FAMILIES = ("llava", "minigpt_v2", "minigpt_4", "qwen_vl")
PICTURE = 9  # the token of one
A, B = ({"pixel_values": torch.full((1, 1), n)} for n in (0.0, 1.0))


@pytest.fixture(scope="module", params=FAMILIES)
def lmm(request, tmp_path_factory):
    """A miniature of each family whose pictures can be shared."""
    family, root = request.param, tmp_path_factory.mktemp(request.param)
    import_module(f"palimpsest.models.miniatures.{family}").generate(root / "parts", seed=4)
    parts = {path.name: path for path in (root / "parts").iterdir()}
    if family == "qwen_vl":
        parts = {"checkpoint": root / "parts"}
    import_module(f"palimpsest.models.families.{family}").assemble(parts, root / "model")
    config = load(Model, f"miniature-{family.replace('_', '-')}", CONFIG)
    # Some prompts without a picture are shorter than what stands before that of others.
    longer = f"This, and no other, is the picture that you see here: {config.chat.image}"
    chat = config.chat.model_copy(update={"image": longer})
    lmm = models.load(config.model_copy(update={"weights": str(root / "model"), "chat": chat}))
    lmm.module.eval()
    return lmm


def questions():
    """Three questions about a picture, one about another and two without any."""
    asked = [
        ("Which colour is it?", picture(0)),
        ("What is two and two? Answer with a number.", None),
        ("Is there a bar, a square or a circle? Answer yes or no.", picture(0)),
        ("Which?", picture(1)),
        ("How many are blue?", picture(0)),
        ("No", None),
    ]
    return [example(Turn(text, "red"), image=image) for text, image in asked]


def generated(lmm, inputs):
    """Return the logits_SBV of the next three tokens."""
    found = lmm.module.generate(
        **inputs,
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=lmm.pad_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(found.logits)


@torch.inference_mode()
def test_logits_are_those_of_whole_prompts(lmm):
    asked = questions()
    in_turn = [lmm.encode_prompt(asked[i]) for i in (0, 2, 4, 1, 3, 5)]
    prompts = [in_turn[n] for n in (0, 3, 4, 1, 5, 2)]
    parts = prefix.cut(prompts, lmm.picture_id)
    assert parts.head_B == [0, 1, 2, 0, 3, 0]
    assert len({len(head.input_ids) for head in parts.heads}) > 1
    looked = []
    tower = lmm.module.get_submodule(lmm.config.tower or "transformer.visual")
    hook = tower.register_forward_pre_hook(lambda _, inputs: looked.append(len(inputs[0])))
    together = generated(lmm, prefix.begun(lmm, parts))
    hook.remove()
    assert looked == [2]  # pictures, at once
    alone = [generated(lmm, prefix.on_device(lmm, [prompt], "left")) for prompt in prompts]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-4, rtol=1e-4)
    assert len({*together.argmax(-1)[0].tolist()}) > 1


def test_a_picture_in_turn_is_decoded_once(lmm, monkeypatch):
    decoded = []
    opened = pictures.opened
    monkeypatch.setattr(pictures, "opened", lambda image: decoded.append(image) or opened(image))
    lmm.encode_prompt(example(Turn("Which?", "red"), image=picture(2)))  # some picture before
    decoded.clear()
    one, _, two, other, three, _ = questions()
    seen = [lmm.encode_prompt(e).pictures for e in (one, two, three, other, one)]
    assert decoded == [one.image, other.image, one.image]
    assert seen[0] is seen[1] is seen[2] is not seen[4]
    torch.testing.assert_close(seen[0], seen[4], rtol=0, atol=0)


def test_a_picture_in_another_way_is_another(lmm):
    asked, config = questions()[0], lmm.config
    try:
        lmm.config = config.model_copy(update={"pictures": "crop"})
        cropped = lmm.encode_prompt(asked).pictures["pixel_values"]
        lmm.config = config.model_copy(update={"pictures": "squash"})
        squashed = lmm.encode_prompt(asked).pictures["pixel_values"]
    finally:
        lmm.config = config
    assert not torch.equal(cropped, squashed)


def prompt(*tokens, pictures=None):
    return Encoded([*tokens], [-100] * len(tokens), pictures or {})


def test_prompts_are_cut_behind_their_pictures():
    prompts = [
        prompt(1, PICTURE, PICTURE, 4, 5, pictures=A),
        prompt(7, 6, 5, 4, 3, 2),  # without a picture: as much as the others
        prompt(1, PICTURE, PICTURE, 6, pictures=A),
        prompt(1, PICTURE, PICTURE, 8, pictures=B),
        prompt(7, 6),  # something must remain
    ]
    parts = prefix.cut(prompts, PICTURE)
    heads = [[1, PICTURE, PICTURE], [7, 6, 5], [1, PICTURE, PICTURE], [7]]
    assert [head.input_ids for head in parts.heads] == heads
    assert [head.pictures for head in parts.heads] == [A, {}, B, {}]
    assert parts.head_B == [0, 1, 0, 2, 3]
    tails = [[4, 5], [4, 3, 2], [6], [8], [6]]
    assert [tail.input_ids for tail in parts.tails] == tails
    assert not any(tail.pictures for tail in parts.tails)


def test_another_beginning_is_not_shared():
    other = prompt(2, PICTURE, 4, pictures=A)
    prompts = [prompt(1, PICTURE, 4, pictures=A), other, prompt(1, PICTURE, 5, pictures=A)]
    assert prefix.cut(prompts, PICTURE).head_B == [0, 1, 0]


@pytest.mark.parametrize(
    "prompts",
    [
        [prompt(1, 2), prompt(1, 2)],
        [prompt(1, PICTURE, 4, pictures=A), prompt(1, PICTURE, 4, pictures=B), prompt(1, 4)],
        [prompt(1, PICTURE, pictures=A), prompt(1, PICTURE, 4, pictures=A)],
        [prompt(1, PICTURE, 4, pictures=A), prompt(1, PICTURE, 4, pictures=A), prompt(1)],
    ],
    ids=["no picture", "none twice", "nothing behind it", "one token"],
)
def test_what_is_not_shared_is_not_cut(prompts):
    assert prefix.cut(prompts, PICTURE) is None


def test_a_family_that_cannot_share_is_not_cut():
    prompts = [prompt(1, PICTURE, 4, pictures=A), prompt(1, PICTURE, 5, pictures=A)]
    assert prefix.cut(prompts, None) is None
    assert prefix.cut(prompts, PICTURE) is not None
    assert models.lmm.LMM.picture_id is None
    apart = [prompts[0], replace(prompts[1], pictures={**A})]  # perhaps another picture
    assert prefix.cut(apart, PICTURE) is None
