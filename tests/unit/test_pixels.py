"""Pixel values that are looked up, against those that an image processor computes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from palimpsest.models.pictures import opened, pixel_values

SQUARE = {"height": 28, "width": 28}
PROCESSORS = {
    "of CLIP": CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE),
    "of BLIP": BlipImageProcessorPil(size=SQUARE),
    "that squashes": CLIPImageProcessorPil(size=SQUARE, do_center_crop=False),
    "of a mean of its own": CLIPImageProcessorPil(
        size=SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.7, 1.3, 0.011], rescale_factor=1 / 127
    ),
    "that leaves levels": CLIPImageProcessorPil(
        size=SQUARE, crop_size=SQUARE, do_rescale=False, do_normalize=False
    ),
}


def picture_of(width: int, height: int) -> Image.Image:
    """Noise, so that every level of every colour is likely to occur."""
    levels_HWC = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels_HWC)


@pytest.mark.parametrize("size", [(28, 28), (61, 40), (40, 61), (300, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_values_are_those_of_the_processor_to_the_last_bit(name, size):
    processor, picture = PROCESSORS[name], picture_of(*size)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    found = pixel_values(processor, picture)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_settings_go_before_the_processors_own():
    processor, picture = PROCESSORS["of CLIP"], picture_of(50, 30)
    squashed = {"size": SQUARE, "do_center_crop": False}
    expected = processor(picture, return_tensors="pt", **squashed)["pixel_values"]
    assert torch.equal(pixel_values(processor, picture, **squashed), expected)
    assert not torch.equal(pixel_values(processor, picture), expected)


def test_a_picture_of_any_mode_is_opened_in_three_colours():
    for mode in ("L", "RGBA", "P"):
        file = BytesIO()
        picture_of(5, 4).convert(mode).save(file, "PNG")
        assert opened(file.getvalue()).mode == "RGB"
