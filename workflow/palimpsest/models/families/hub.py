"""Any image-text-to-text model of the hub that transformers has a class for, by YAML alone.

Its own processor turns pictures into tensors, and their placeholders into tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    PROCESSOR_MAPPING,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from palimpsest.config import Model
from palimpsest.data.example import Example, black
from palimpsest.models.lmm import DTYPES, Conversing, Read, ending, source
from palimpsest.models.pictures import adjusted, shown

USUAL = (640, 480)  # width and height in pixels of most of COCO's pictures


def load(config: Model) -> Hub:
    """Load weights and processor, and no code, from a directory or a pinned hub revision.

    Errors: ValueError names the key of the config that does not fit the model.
    """
    if config.pictures in ("crop", "squash"):
        raise ValueError(
            f"pictures: {config.pictures!r} needs a tower of one size, which the hub family does "
            "not know of: say `pad`, or name settings of the model's image processor"
        )
    where = {**source(config), "trust_remote_code": False}
    module = AutoModelForImageTextToText.from_pretrained(
        **where, dtype=DTYPES[config.precision], use_safetensors=True
    )
    return Hub(config, module, _processor(config, module.config, where))


class Hub(Conversing):
    """A model of the hub, which reads as its processor does.

    The config's `pictures` are settings of the image processor, such as `max_pixels`; or `pad`: a
    picture is put on a square of the processor's mean colour first.
    """

    def __init__(self, config: Model, module: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.config, self.module, self.processor = config, module, processor
        self.tokenizer, self.image_processor = processor.tokenizer, processor.image_processor
        self.end_id = ending(config.chat, self.tokenizer)
        self.pad_id = self.tokenizer.pad_token_id
        if self.pad_id is None:
            self.pad_id = self.end_id
        placeholder = getattr(processor, "image_token", "")
        if placeholder not in config.chat.image:
            raise ValueError(
                f"chat.image: {config.chat.image!r} should hold {placeholder!r}, which this "
                "model's processor puts a picture in the place of"
            )
        usual = self._read(Example("usual", black(USUAL), (), ()), config.chat.image)
        self.image_length = len(usual.input_ids)

    def save(self, directory: Path) -> None:
        """Write weights, config and processor."""
        self.module.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    def _read(self, example: Example, text: str) -> Read:
        found = self.processor(
            text=[text],
            images=self._pictures(example) or None,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        (input_ids,) = found.pop("input_ids").tolist()
        (offsets,) = found.pop("offset_mapping").tolist()
        del found["attention_mask"]
        of_tokens = {name for name, t in found.items() if t.shape == (1, len(input_ids))}
        return Read(
            input_ids,
            offsets,
            grown=offsets[-1][1] - self._length(text),
            pictures={name: t for name, t in found.items() if name not in of_tokens},
            tokens={name: found[name][0].tolist() for name in of_tokens},
        )

    def _length(self, text: str) -> int:
        """Return the characters of a text up to the end of its last token."""
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return tokens["offset_mapping"][-1][1]

    def _pictures(self, example: Example) -> list[Image.Image]:
        if example.image is None:
            return []
        return [shown(example.image, self.config, self.processor.image_processor)]


def _processor(config: Model, of: PreTrainedConfig, where: dict[str, Any]) -> ProcessorMixin:
    """Put together the processor of a model's class, without what reads videos and sound.

    AutoProcessor would load that as well, and needs torchvision for it.
    """
    if type(of) not in PROCESSOR_MAPPING:
        raise ValueError(f"{config.weights}: transformers has no processor for a {of.model_type}")
    kind = PROCESSOR_MAPPING[type(of)]

    class OfPictures(kind):
        def check_argument_for_proper_class(self, name: str, part: Any) -> Any:
            return None if part is None else super().check_argument_for_proper_class(name, part)

    image_processor = AutoImageProcessor.from_pretrained(**where, backend="pil")
    parts = dict.fromkeys(kind.get_attributes()) | {
        "image_processor": adjusted(image_processor, config),
        "tokenizer": AutoTokenizer.from_pretrained(**where),
    }
    settings, _ = kind.get_processor_dict(**where)
    return OfPictures.from_args_and_dict([], settings, **parts)
