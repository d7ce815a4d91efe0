"""What a question looks like to a model before anything is learnt: its picture and its text.

The queries of EProj, and the embeddings by which tasks are compared (He et al., arXiv 2311.16206);
those of CORE, where a model has an encoder of pictures and texts in one space.

Shapes: B examples, E width of the tower or of that space, D width of the text encoder or of the
language model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.data.example import Example
from palimpsest.models.lmm import Conversing, Encoded
from palimpsest.models.text_encoder import Bert


class Queries:
    """Embeddings by a model's frozen tower and its text encoder; in fp32, on the CPU.

    They follow the model to its device. If they are to be `aligned` with words, pictures are seen
    by the model's encoder of pictures and texts in the place of its tower, if it has one.
    """

    def __init__(self, lmm: Conversing, aligned: bool = False) -> None:
        """Errors: ValueError if the model has no module of the name of its config's `tower`."""
        name, encoder = lmm.config.tower, lmm.config.text_encoder
        try:
            self.tower = lmm.module.get_submodule(name)
        except AttributeError:
            raise ValueError(
                f"tower: {name!r} is no module of a {type(lmm.module).__name__}; "
                "correct it in the model's config"
            ) from None
        self.lmm = lmm
        self.encoder = Bert(encoder) if encoder else None
        self.image_text = None
        if aligned and lmm.config.image_text:
            from palimpsest.models.image_text import ImageText  # BLIP-2, which few models have

            self.image_text = ImageText(lmm.config.image_text)

    def of(
        self, examples: Sequence[Example], prompts: Sequence[Encoded] | None = None
    ) -> dict[str, Tensor]:
        """Return `image` q_BE, as the tower's [CLS], and `instruction` q_BD, of the last question.

        The image of an example without a picture is zeros. `prompts` are the examples as the model
        reads them before it answers, if they are at hand.
        """
        prompts = prompts or [self.lmm.encode_prompt(example) for example in examples]
        questions = [example.turns[-1].question for example in examples]
        if self.image_text:
            images = self._aligned([example.image for example in examples])
        else:
            images = self._images(prompts)
        return {"image": images, "instruction": self.texts(questions)}

    @torch.no_grad()
    def words(self, modality: str, texts: Sequence[str]) -> Tensor | None:
        """Return texts as queries of a modality, `image` or `instruction`.

        None for an image, if the model has no encoder of pictures and texts in one space.
        """
        if modality == "instruction":
            return self.texts(texts)
        if self.image_text is None:
            return None
        return self.image_text.to(self.lmm.module.device).texts(texts).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return q_BD: [CLS] of the text encoder, or the mean of the model's own embeddings."""
        device = self.lmm.module.device
        if self.encoder:
            return self.encoder.to(device)(list(texts)).float().cpu()
        embeddings = self.lmm.module.get_input_embeddings()
        read = [self.lmm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        rows = [embeddings(torch.tensor(ids, dtype=torch.long, device=device)) for ids in read]
        return torch.stack([x_LD.float().sum(0) / max(1, len(x_LD)) for x_LD in rows]).cpu()

    @torch.no_grad()
    def _aligned(self, images: Sequence[bytes | None]) -> Tensor:
        q_BE = torch.zeros(len(images), self.image_text.width)
        shown = [row for row, image in enumerate(images) if image is not None]
        if shown:
            seer = self.image_text.to(self.lmm.module.device)
            q_BE[shown] = seer.pictures([images[row] for row in shown]).cpu()
        return q_BE

    @torch.no_grad()
    def _images(self, prompts: Sequence[Encoded]) -> Tensor:
        q_BE = torch.zeros(len(prompts), self.tower.config.hidden_size)
        shown = [row for row, prompt in enumerate(prompts) if prompt.pictures]
        if shown:
            pixels = torch.cat([prompts[row].pictures["pixel_values"] for row in shown])
            seen = self.tower(pixels.to(self.lmm.module.device)).last_hidden_state
            q_BE[shown] = seen[:, 0].float().cpu()
        return q_BE
