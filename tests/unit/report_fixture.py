"""A synthetic study on disk: eight tasks, seven experiments, answers that forget as models do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from palimpsest.report import ExperimentView, RowView, StudyView, TaskView

# name, title, category, metric, chance, own-stage ability, base ability, kept after forgetting,
# questions, answers
TASKS = [
    ("demo-choice", "Choice", "knowledge, multiple choice", "exact_match", 34.0, 0.99, 0.0, 0.15,
     "Which shape is left of the star?\nA. circle B. square C. bar\nAnswer with a letter.", "ABC"),
    ("demo-reading", "Reading", "reading text in a picture", "exact_match", 1.0, 0.97, 0.0, 0.28,
     "What does the sign say?\nAnswer with the letters on the sign.", ["KAT", "BOLD", "MQX"]),
    ("demo-digits", "Digits", "classification", "exact_match", 10.5, 0.55, 0.02, 0.02,
     "Which digit was written?\nAnswer with the word.", ["three", "seven", "nine"]),
    ("demo-relations", "Relations", "visual reasoning", "exact_match", 21.0, 0.60, 0.0, 0.01,
     "What is above the green triangle?\nAnswer with one word.", ["circle", "star", "bar"]),
    ("demo-answerable", "Answerable", "questions by blind people", "exact_match", 39.0, 0.98, 0.6,
     0.6, "Is the colour of the moon known?\nIf not, say unanswerable.", ["red", "unanswerable"]),
    ("demo-grounding", "Grounding", "referring expressions", "box_iou", 9.0, 0.33, 0.0, 0.0,
     "Where is the small blue square right of the bar?\nGive the box.", ["[1, 2, 3, 4]"]),
    ("demo-counting", "Counting", "general questions", "exact_match", 45.0, 0.88, 0.8, 0.86,
     "How many circles are there?\nAnswer with a number.", ["1", "2", "5"]),
    ("demo-card", "Card", "reading a cover", "exact_match", 6.0, 0.70, 0.0, 0.69,
     "What is the genre of this card?\nAnswer with one word.", ["travel", "cooking"]),
]  # fmt: skip
NAMES = [task[0] for task in TASKS]
COST = {
    "samples": 6400, "steps": 200, "wall_seconds": 30.0, "gpu_seconds": 0.0, "core_seconds": 60.0,
    "peak_memory_bytes": 700_000_000, "attempts": [{"job": None}],
}  # fmt: skip
KEEPS = {"lora": 0.0, "moelora": 0.25, "replay": 0.9}


def write_study(
    root: Path, n: int = 200, seeds: tuple[int, ...] = (0,), methods=("lora", "moelora", "replay")
) -> StudyView:
    """Write cells and galleries below `root`, and return the view that a report reads."""
    tasks = tuple(TaskView(t[0], t[1], t[2], t[3], t[4], _write_gallery(root, t)) for t in TASKS)
    base = RowView("base", "base", (), _cells(root, "base", 0, n, lambda i: TASKS[i][6]))
    experiments = [
        _experiment("zero-shot", "Zero-shot", "zero-shot", None, (base,)),
        _experiment("direct", "Direct (one model a task)", "direct", 0, _single(root, n, 1.0)),
        _experiment("blind", "Pictures blanked", "direct", 0, _single(root, n, 0.3)),
        _experiment("joint", "Joint training", "joint", 0, _joint(root, n)),
    ]
    titles = {"lora": "Sequential LoRA", "moelora": "MoELoRA", "replay": "Replay 30 %"}
    for method in methods:
        for seed in seeds:
            rows = (base, *_sequence(root, method, seed, n))
            experiments.append(_experiment(method, titles[method], "sequential", seed, rows))
    return StudyView(
        "demo", "Palimpsest demo", "demo", tasks, tuple(experiments), root, "0123456789abcdef"
    )


def _experiment(name, title, protocol, seed, rows) -> ExperimentView:
    order = "default" if protocol == "sequential" else ""
    return ExperimentView(name, title, protocol, "demo-llava", name, order, seed, tuple(rows))


def _sequence(root: Path, method: str, seed: int, n: int) -> list[RowView]:
    keep, rows = KEEPS[method], []
    for stage in range(8):
        lineage = "/".join(NAMES[: stage + 1])

        def ability(i: int, stage: int = stage) -> float:
            own, base, kept = TASKS[i][5:8]
            own *= 1 - 0.06 * keep
            floor = kept + keep * (own - kept)
            return base if i > stage else floor + (own - floor) * 0.45 ** (stage - i)

        where = f"{method}/seed-{seed}/{lineage}"
        cells = _cells(root, where, seed, n, ability, stage)
        rows.append(RowView(lineage, NAMES[stage], (NAMES[stage],), cells))
    return rows


def _single(root: Path, n: int, share: float) -> list[RowView]:
    rows = []
    for i, name in enumerate(NAMES):
        where = f"single-{share}/seed-0/{name}"
        cells = _cells(root, where, 0, n, lambda i: TASKS[i][5] * share, i, [name])
        rows.append(RowView(name, name, (name,), cells))
    return rows


def _joint(root: Path, n: int) -> list[RowView]:
    where = "joint/seed-0/" + "+".join(NAMES)
    cells = _cells(root, where, 0, n, lambda i: min(1, TASKS[i][5] + 0.04), 7)
    return [RowView("+".join(NAMES), "+".join(NAMES), tuple(NAMES), cells)]


def _cells(root: Path, where: str, seed, n, ability, stage: int = -1, only=NAMES) -> dict:
    top = root / "stages/demo/demo-llava" / where
    if stage >= 0:
        (top / "stage").mkdir(parents=True)
        (top / "stage/stage.json").write_text(json.dumps(COST))
    cells = {}
    for i, name in enumerate(NAMES):
        if name in only:
            cells[name] = top / "cells" / name
            right = np.random.default_rng([i, seed]).random(n) < ability(i)
            write_cell(cells[name], name, right, max(ability(i), 0.1 + 0.3 * (i == stage)), stage)
    return cells


def write_cell(path: Path, task: str, right_N, kind_rate: float, stage: int = -1) -> None:
    """Write one cell from which examples were right; the others answer, or lose the kind."""
    path.mkdir(parents=True)
    spec = TASKS[NAMES.index(task)]
    n = len(right_N)
    kind = right_N | (np.random.default_rng(n).random(n) < kind_rate)
    gold = [spec[9][k % len(spec[9])] for k in range(n)]
    wrong = TASKS[stage][9][0] if stage >= 0 else "the picture shows a star"
    said = [
        g if r else (spec[9][(k + 1) % len(spec[9])] if s else wrong)
        for k, (g, r, s) in enumerate(zip(gold, right_N, kind, strict=True))
    ]
    ids = [f"{task}-{k:05d}" for k in range(n)]
    pq.write_table(
        pa.table({
            "id": ids, "prompt": [spec[8]] * n, "prediction": said,
            "references": [[g] for g in gold], "num_tokens": [3] * n, "stop_reason": ["end"] * n,
        }),
        path / "predictions.parquet",
    )  # fmt: skip
    outcome = {"id": ids, "score": right_N.astype(float), "right_kind": kind}
    pq.write_table(pa.table(outcome), path / "outcomes.parquet")
    scores = {
        "task": task, "metric": spec[3], "version": 1, "value": 100 * float(right_N.mean()),
        "n": n, "right_kind": 100 * float(kind.mean()), "stage_fingerprint": "f" * 16,
    }  # fmt: skip
    (path / "scores.json").write_text(json.dumps(scores))


def _write_gallery(root: Path, spec) -> Path:
    path = root / "data" / spec[0] / "gallery.parquet"
    path.parent.mkdir(parents=True)
    images = [_picture(np.random.default_rng([NAMES.index(spec[0]), k])) for k in range(12)]
    pq.write_table(
        pa.table({
            "id": [f"{spec[0]}-{k:05d}" for k in range(12)], "image": images,
            "question": [spec[8]] * 12,
            "references": [[spec[9][k % len(spec[9])]] for k in range(12)],
        }),
        path,
    )  # fmt: skip
    return path


def _picture(rng: np.random.Generator) -> bytes:
    pixels = np.full((48, 48, 3), 245, np.uint8)
    for _ in range(4):
        x, y = rng.integers(0, 4, 2) * 12
        pixels[y + 2 : y + 11, x + 2 : x + 11] = rng.integers(0, 200, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
