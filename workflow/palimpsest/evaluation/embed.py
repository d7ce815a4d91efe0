"""Embeddings of tasks by a model: mean picture, mean instruction and mean answer.

He et al. (arXiv 2311.16206). The mean is over single examples; their released code takes the mean
of the means of batches, in which the examples of a smaller last batch count for more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tqdm import tqdm

from palimpsest.config import Model, load
from palimpsest.data.example import Example
from palimpsest.embeddings import embedding_file, fingerprints
from palimpsest.files import whole_file
from palimpsest.methods.similarity import unit
from palimpsest.models import load as load_model
from palimpsest.models.queries import Queries
from palimpsest.tasks import open_task

EXAMPLES = 1000  # of a task, evenly strided through its training split
BATCH = 16  # examples that are embedded together


def embed(model_name: str, tasks: Sequence[str], results: Path) -> None:
    """Embed some tasks with one load of a model, and write a file of each.

    Errors: ValueError if a task's shards belong to another config.
    """
    model = load(Model, model_name)
    torch.set_num_threads(model.resources.threads)
    lmm = load_model(model)
    lmm.module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    queries = Queries(lmm)
    for task in tasks:
        begun = time.monotonic()
        examples = open_task(results, task, "train")
        chosen = strided(len(examples), EXAMPLES)
        starts = tqdm(range(0, len(chosen), BATCH), task, unit="batch", disable=None)
        batches = ([examples[i] for i in chosen[k : k + BATCH]] for k in starts)
        vectors = mean_embeddings(queries, batches)
        path = embedding_file(results, model_name, task)
        with whole_file(path) as partial:
            save_file(vectors, partial, metadata=fingerprints(model_name, task))
        seconds = time.monotonic() - begun
        print(f"{path}: {len(chosen)} examples in {seconds:.1f} s", flush=True)


def strided(total: int, count: int) -> list[int]:
    """Return at most `count` indices of `total`, the first and the last among them, evenly."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def mean_embeddings(queries: Queries, batches: Iterable[list[Example]]) -> dict[str, np.ndarray]:
    """Return the mean embedding of each modality over all examples, at length 1, in float32.

    The instruction is the last question and the answer the one to it. An example without a
    picture does not count for the image; where none has one, that is zeros.
    """
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        of_batch = queries.of(batch)
        of_batch["answer"] = queries.texts([example.turns[-1].answer for example in batch])
        for name, x_BE in of_batch.items():
            sums[name] = sums.get(name, 0.0) + x_BE.double().sum(0).numpy()
    return {name: unit(total).astype(np.float32) for name, total in sums.items()}
