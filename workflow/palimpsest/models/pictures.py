"""Pictures as models take them.

Shapes: N pictures, C = 3 colours, H x W pixels, V = 256 levels of a colour.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Pixels:
    """Scales and crops a picture as an image processor does; what comes after is looked up.

    The processor's rescaling and normalising depend on a pixel's colour and level alone. Here the
    processor does them once, for every level, and not for every pixel of every picture, where they
    would take as long as all the rest. The values are the same to the last bit.
    """

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.image_processor = image_processor
        every_1VC = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        as_it_is = {"do_resize": False, "do_center_crop": False}
        self.value_CV = self._processed(Image.fromarray(every_1VC), **as_it_is)[:, 0]

    def __call__(self, picture: Image.Image, **settings: Any) -> torch.Tensor:
        """Return values_NCHW of one picture; `settings` go before the processor's own."""
        unchanged = {"do_rescale": False, "do_normalize": False}
        level_CHW = self._processed(picture, **unchanged, **settings)
        value_NCHW = np.empty((1, *level_CHW.shape), self.value_CV.dtype)
        for value_V, level_HW, out in zip(self.value_CV, level_CHW, value_NCHW[0], strict=True):
            np.take(value_V, level_HW, out=out, mode="clip")  # nothing to clip, but no detour
        return torch.from_numpy(value_NCHW)

    def _processed(self, picture: Image.Image, **settings: Any) -> np.ndarray:
        return self.image_processor(picture, return_tensors="np", **settings)["pixel_values"][0]
