"""Pictures and words in one space, and sentences by their mean: tiny encoders in the hub's form."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import (
    BertTokenizerFast,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    MPNetConfig,
    MPNetModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from palimpsest import models
from palimpsest.config import Encoder, Model, TextEncoder
from palimpsest.data.example import Example, Turn
from palimpsest.models.image_text import ImageText
from palimpsest.models.queries import Queries
from palimpsest.models.text_encoder import Bert
from workspace import MODEL, save_tiny_model

WORDS = ["a", "round", "lid", "long", "handle", "what", "is", "it", "?"]
TEXTS = ["A round lid!", "a long, long handle", "lid"]
LAYERS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2}  # fmt: skip


def drawn(module, path, tokenizer):
    """Give a module weights from which different inputs get different outputs, and save it."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    module.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return module


def tokens(*special):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *special, *WORDS]
    return BertTokenizerFast(vocab={piece: n for n, piece in enumerate(pieces)})


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A directory as Salesforce/blip2-itm-vit-g, and the module in it."""
    path, tokenizer = tmp_path_factory.mktemp("blip"), tokens("[DEC]")
    qformer = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 64,
               "encoder_hidden_size": 16, "use_qformer_text_input": True,
               "cross_attention_frequency": 2}  # fmt: skip
    config = Blip2Config(
        vision_config={**LAYERS, "image_size": 16, "patch_size": 8},
        qformer_config=qformer,
        num_query_tokens=3,
        image_text_hidden_size=6,
    )
    BlipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(path)
    return path, drawn(Blip2ForImageTextRetrieval(config), path, tokenizer)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_model(path)
    return models.load(
        Model.model_validate(MODEL | {"tower": "model.vision_tower", "weights": str(path)})
    )


def picture(*colours):
    image = Image.new("RGB", (24, 20), colours[0])
    image.paste(colours[-1], (0, 0, 12, 20))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture("red"), picture("blue", "white"), picture("green", "black")]


def test_embeddings_are_the_mean_of_what_the_q_former_gives(blip):
    """The projections are asked by transformers' own forward, one picture and text at a time."""
    path, module = blip
    encoder, states = ImageText(Encoder(weights=str(path))), []
    hook = module.qformer.register_forward_hook(
        lambda _, inputs, output: states.append(output.last_hidden_state)
    )
    tokenizer, processor = tokens("[DEC]"), BlipImageProcessorPil.from_pretrained(path)
    pictures, texts = encoder.pictures(PICTURES), encoder.texts(TEXTS)
    assert (pictures.shape, texts.shape, encoder.width) == ((3, 6), (3, 6), 6)
    plain = ["a round lid", "a long, long handle", "lid"]
    for row, (image, text) in enumerate(zip(PICTURES, plain, strict=True)):
        pixels = processor(Image.open(BytesIO(image)).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            module(**pixels, **tokenizer([text], return_tensors="pt"))
            seen_D = module.vision_projection(states[-2])[0].mean(0)
            said_D = module.text_projection(states[-1])[0].mean(0)
        assert_close(pictures[row], F.normalize(seen_D, dim=-1), rtol=0, atol=1e-5)
        assert_close(texts[row], F.normalize(said_D, dim=-1), rtol=0, atol=1e-5)
    hook.remove()
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-2)
    assert not torch.allclose(texts[0], texts[2], atol=1e-2)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_aligned_queries_are_of_that_space(llava, blip):
    config = llava.config
    own = {"image_text": Encoder(weights=str(blip[0]))}
    llava.config = config.model_copy(update=own)
    rows = [Example(str(n), image, (Turn("what is it ?", "a"),), ()) for n, image in
            enumerate(PICTURES)]  # fmt: skip
    rows[1] = replace(rows[1], image=None)
    queries, encoder = Queries(llava, aligned=True), ImageText(own["image_text"])
    found = queries.of(rows)
    assert_close(found["image"][[0, 2]], encoder.pictures([PICTURES[0], PICTURES[2]]))
    assert torch.equal(found["image"][1], torch.zeros(6))
    assert_close(queries.words("image", TEXTS), encoder.texts(TEXTS))
    assert_close(queries.words("instruction", ["what is it ?"])[0], found["instruction"][0])
    tower = Queries(llava).of(rows)  # of who compares tasks, the tower's all the same
    llava.config = config
    assert_close(Queries(llava, aligned=True).of(rows)["image"], tower["image"])
    assert Queries(llava, aligned=True).words("image", TEXTS) is None


def test_the_mean_of_a_sentence_leaves_padding_out(tmp_path):
    tokenizer = tokens()
    config = MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **LAYERS)
    module = drawn(MPNetModel(config), tmp_path, tokenizer)
    found = Bert(TextEncoder(weights=str(tmp_path), pooling="mean"))(TEXTS)
    first = Bert(TextEncoder(weights=str(tmp_path)))(TEXTS)
    for row, text in enumerate(TEXTS):
        read = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            wanted_LD = module(**read).last_hidden_state[0]
        assert_close(found[row], wanted_LD.mean(0), rtol=0, atol=1e-5)
        assert_close(first[row], wanted_LD[0], rtol=0, atol=1e-5)
