"""Pictures as models take them.

Shapes: N pictures, C = 3 colours, H x W pixels, V = 256 levels of a colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from palimpsest.config import Model
from palimpsest.refusal import one_of


def opened(image: bytes) -> Image.Image:
    """Decode a picture."""
    return Image.open(BytesIO(image)).convert("RGB")


def padded(picture: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Put a picture in the middle of a square of a processor's mean colour (0 to 1).

    As LLaVA-1.5 does: colour and position are rounded down.
    """
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def adjusted(image_processor: BaseImageProcessor, config: Model) -> BaseImageProcessor:
    """Give an image processor the settings that the config's `pictures` names, if it does.

    Errors: ValueError if it has no such setting.
    """
    if not isinstance(config.pictures, dict):
        return image_processor
    for name in config.pictures:
        known = image_processor.valid_kwargs.__annotations__
        one_of(name, known, f"setting of a {type(image_processor).__name__} (pictures)")
    return image_processor.from_dict(image_processor.to_dict(), **config.pictures)


def shown(image: bytes, config: Model, image_processor: BaseImageProcessor) -> Image.Image:
    """Decode a picture, and `pad` it to a square where the config's `pictures` says so."""
    picture = opened(image)
    return padded(picture, image_processor.image_mean) if config.pictures == "pad" else picture


def pixel_values(
    image_processor: BaseImageProcessor, picture: Image.Image, **settings: Any
) -> torch.Tensor:
    """Return values_NCHW of one picture as an image processor does, to the last bit.

    It scales and crops the picture; `settings` go before its own. What comes after, rescaling and
    normalising, depends on a pixel's colour and level alone, and is looked up.
    """
    unchanged = {"do_rescale": False, "do_normalize": False}
    level_CHW = _processed(image_processor, picture, **unchanged, **settings)
    value_CV = _values(image_processor)
    value_NCHW = np.empty((1, *level_CHW.shape), value_CV.dtype)
    for value_V, level_HW, out in zip(value_CV, level_CHW, value_NCHW[0], strict=True):
        np.take(value_V, level_HW, out=out, mode="clip")  # nothing to clip, but no detour
    return torch.from_numpy(value_NCHW)


@cache
def _values(image_processor: BaseImageProcessor) -> np.ndarray:
    """Return value_CV: what a processor makes of every level of every colour."""
    every_1VC = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    as_it_is = {"do_resize": False, "do_center_crop": False}
    return _processed(image_processor, Image.fromarray(every_1VC), **as_it_is)[:, 0]


def _processed(
    image_processor: BaseImageProcessor, picture: Image.Image, **settings: Any
) -> np.ndarray:
    return image_processor(picture, return_tensors="np", **settings)["pixel_values"][0]
