"""The embeddings of tasks by a model, as files: what their similarity is computed from.

    results/embeddings/<model>/<task>.safetensors    image, instruction, answer: vectors of length 1

The file says of which model and task they are; `palimpsest embed` writes it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from palimpsest.config import Model, Task, load
from palimpsest.files import fingerprint
from palimpsest.methods.similarity import MODALITIES, joined


def embedding_file(results: Path, model: str, task: str) -> Path:
    """Return where the embeddings of a task by a model are."""
    return results / "embeddings" / model / f"{task}.safetensors"


def fingerprints(model: str, task: str) -> dict[str, str]:
    """Return what an embedding file is known by: another config of either gives another one."""
    config = load(Model, model)
    return {
        "model_fingerprint": fingerprint([config.science(), config.comparing]),
        "task_fingerprint": load(Task, task).fingerprint,
    }


def read_embeddings(results: Path, model: str, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Return x_TE of each modality for some tasks, in their order.

    Errors: ValueError names a file that is missing, broken, or of another config.
    """
    found = [_read(embedding_file(results, model, task), model, task) for task in tasks]
    return {name: np.stack([one[name] for one in found]) for name in MODALITIES}


def read_steps(
    results: Path, model: str, steps: Sequence[tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """Return x_TE of each modality for some steps; one that learns several tasks joins theirs."""
    found = [read_embeddings(results, model, step) for step in steps]
    return {name: np.stack([joined(one[name]) for one in found]) for name in MODALITIES}


def _read(path: Path, model: str, task: str) -> dict[str, np.ndarray]:
    anew = f"remove it, and `palimpsest embed {model} {task}` makes it anew"
    if not path.is_file():
        raise ValueError(f"{path}: file is missing; `palimpsest embed {model} {task}` makes it")
    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            vectors = {name: file.get_tensor(name) for name in MODALITIES}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a valid safetensors file ({error}); {anew}") from None
    for key, value in fingerprints(model, task).items():
        if about.get(key) != value:
            raise ValueError(
                f"{path}: {key} is {about.get(key)}, that of the present config is {value}; {anew}"
            )
    return vectors
