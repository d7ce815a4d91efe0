"""Questions answered in a second, against the loop of the field.

The loop of the field answers one question at a time, by transformers' `generate` with its cache,
and loads the model anew for every cell. Ours loads it once, answers batches of similar length, and
computes what questions about one picture begin with once. Both have the same weights in fp32, one
thread, and the same questions in the same order: of the demo model, or of a thin LLaVA of random
weights whose picture has LLaVA-1.5's 576 tokens. A ratio is of CPU time. It holds the loading of
weights, and leaves out the start of a process, which the field pays for every cell and we once; it
says nothing of GPUs, which batches fill better, nor of long answers: these are of 2 to 8 tokens.
Prompts of a cell are of like length, as those of a task are; where five questions about a picture
of 16 tokens differ as those of several tasks do, padding takes back a part of what is saved.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import yaml

import random_llava
from bench import Claim, ratio, side_by_side
from palimpsest import models
from palimpsest.config import Model, load
from palimpsest.data.example import characters
from palimpsest.evaluation.generate import answer
from palimpsest.models.lmm import LMM
from palimpsest.study import manner_of
from palimpsest.tasks import Examples
from workspace import REPOSITORY, TASKS, entered

BATCH = 125  # as of the demo
QUESTIONS = 5  # about one picture
DEMO, THIN = "demo-llava", "thin"
SIDE, PATCH = 336, 14  # of LLaVA-1.5's pictures


class Cell(list):
    """Questions in some order, as `answer` reads them."""

    def characters(self) -> list[int]:
        """Return the length of every question."""
        return [characters(example) for example in self]


Cells = dict[str, Cell]  # by task
Answered = tuple[list[str], Counter]


def claims() -> list[Claim]:
    """Measure cells of pictures asked about once, then five times, then pictures of 576 tokens."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory, entered(Path(directory) / "w", test=100):
        models_of_workspace()
        cells = {task: Cell(Examples(Path("results"), "three", [task], "test")) for task in TASKS}
        shared = {task: several(cell, 20) for task, cell in cells.items()}
        return [
            against_the_field("questions/s, a picture each", DEMO, cells, "≥ 3"),
            against_the_field("questions/s, five about a picture", DEMO, shared, "≥ 6"),
            against_whole_prompts({"choice": several(cells["choice"], 8)}),
        ]


def against_the_field(what: str, model: str, cells: Cells, goal: str) -> Claim:
    """Measure our way against the loop of the field."""
    ways = {"ours": lambda: ours(model, cells), "the field": lambda: of_the_field(model, cells)}
    return claim(what, ways, goal)


def against_whole_prompts(cells: Cells) -> Claim:
    """Measure batches whose pictures are shared against batches in which nothing is."""

    def whole() -> Answered:
        return ours(THIN, cells, share=False)

    ways = {"ours": lambda: ours(THIN, cells), "whole prompts": whole}
    return claim("five questions about a picture of 576 tokens, shared or not", ways, "")


def claim(what: str, ways: dict[str, Callable[[], Answered]], goal: str) -> Claim:
    """Measure our way against another; tell which answers differ, and what both cost."""
    costs, given = side_by_side(ways)
    (mine, our_cost), (others, other_cost) = given.values()
    differ = sum(a != b for a, b in zip(mine, others, strict=True))
    counts = [
        f"{name} {our_cost[key]:,} against {other_cost[key]:,}"
        for name, key in {
            "model loads": "model_loads",
            "pictures decoded": "pictures_decoded",
            "prompt tokens": "prompt_tokens",
            "padded tokens": "padded_tokens",
            "prefix tokens saved": "prefix_tokens_saved",
        }.items()
    ]
    beside = "; ".join([f"{differ} of {len(mine)} predictions differ", *counts])
    return ratio(what, *costs.values(), goal=goal, beside=beside)


def ours(model: str, cells: Cells, share: bool = True) -> Answered:
    """Answer the cells of one stage as `palimpsest evaluate` does."""
    lmm = loaded(model)
    if not share:
        lmm.picture_id = None
    predictions, cost = [], Counter(model_loads=1)
    for task, cell in cells.items():
        rows, counters = answer(lmm, cell, manner_of(model, task, "consistent"), BATCH)
        predictions += [row["prediction"] for row in rows]
        cost.update(counters)
    return predictions, cost


@torch.inference_mode()
def of_the_field(model: str, cells: Cells) -> Answered:
    """Answer one question after another, cell after cell, each with a model of its own."""
    predictions, cost = [], Counter()
    for task, cell in cells.items():
        lmm = loaded(model)
        for example in cell:
            inputs = lmm.collate([lmm.encode_prompt(example)], "left")
            del inputs["labels"]
            tokens_1L = lmm.module.generate(
                **inputs,
                max_new_tokens=manner_of(model, task, "consistent").max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=lmm.end_id,
                pad_token_id=lmm.pad_id,
            )
            length = inputs["input_ids"].shape[1]
            predictions.append(lmm.decode(tokens_1L[0, length:].tolist()).strip())
            cost.update(prompt_tokens=length, pictures_decoded="pixel_values" in inputs)
        cost.update(model_loads=1)
    return predictions, cost


def several(cell: Cell, pictures: int) -> Cell:
    """Return the first questions of a cell, five about each of some of its pictures.

    As in the files of the field, those about one picture do not follow each other.
    """
    asked = cell[: QUESTIONS * pictures]
    return Cell(replace(e, image=cell[n % pictures].image) for n, e in enumerate(asked))


def loaded(model: str) -> LMM:
    """Load a model, ready to answer."""
    lmm = models.load(load(Model, model))
    lmm.module.eval()
    return lmm


def models_of_workspace() -> None:
    """Put the demo model and a thin LLaVA into the workspace, which is the working directory."""
    demo, thin = (Path(f"config/models/{name}.yaml") for name in (DEMO, THIN))
    shutil.copy(REPOSITORY / demo, demo)
    content = yaml.safe_load(demo.read_text()) | {"weights": "weights/thin", "max_length": 1024}
    del content["sha256"]
    thin.write_text(yaml.safe_dump(content))
    lmm = loaded(DEMO)
    shape = random_llava.config(
        lmm.tokenizer,
        {
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 1, "image_size": SIDE, "patch_size": PATCH,
        },
        lmm.module.config.text_config.to_dict()
        | {"max_position_embeddings": 1024, "initializer_range": 0.2},  # so that answers differ
    )  # fmt: skip
    for piece in (
        random_llava.build(shape, "cpu", torch.float32),
        lmm.tokenizer,
        random_llava.image_processor(SIDE),
    ):
        piece.save_pretrained(content["weights"])
