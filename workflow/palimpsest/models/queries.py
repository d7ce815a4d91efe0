"""What a question looks like to a model before anything is learnt: its picture and its text.

The queries of EProj, and the embeddings by which tasks are compared (He et al., arXiv 2311.16206).

Shapes: B examples, E width of the tower, D width of the text encoder or of the language model.
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

    They follow the model to its device.
    """

    def __init__(self, lmm: Conversing) -> None:
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

    def of(
        self, examples: Sequence[Example], prompts: Sequence[Encoded] | None = None
    ) -> dict[str, Tensor]:
        """Return `image` q_BE, the tower's [CLS], and `instruction` q_BD, of the last question.

        The image of an example without a picture is zeros. `prompts` are the examples as the model
        reads them before it answers, if they are at hand.
        """
        prompts = prompts or [self.lmm.encode_prompt(example) for example in examples]
        questions = [example.turns[-1].question for example in examples]
        return {"image": self._images(prompts), "instruction": self.texts(questions)}

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
    def _images(self, prompts: Sequence[Encoded]) -> Tensor:
        q_BE = torch.zeros(len(prompts), self.tower.config.hidden_size)
        shown = [row for row, prompt in enumerate(prompts) if prompt.pictures]
        if shown:
            pixels = torch.cat([prompts[row].pictures["pixel_values"] for row in shown])
            seen = self.tower(pixels.to(self.lmm.module.device)).last_hidden_state
            q_BE[shown] = seen[:, 0].float().cpu()
        return q_BE
