"""A synthetic study on disk: eight tasks, seven experiments, answers that forget as models do."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from palimpsest.report import ExperimentView, Measure, RowView, StudyView, TaskView, build, judged
from palimpsest.report.spec import MethodView, ModelView, ReferenceView, Setting, Used

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
TRAINING = {
    "epochs": 1.0, "learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.05,
    "weight_decay": 0.01, "betas": (0.9, 0.98), "gradient_clip": 1.0,
}  # fmt: skip
MADE = {
    "fingerprint": "f" * 16, "commit": "c" * 40, "versions": {"torch": "2.13.0"},
    "data": {"demo-choice": "d" * 64},
    "identity": {"seed": 0, "method": {"training": TRAINING}, "benchmark": {"pictures": "real"}},
}  # fmt: skip
LORA = {"adapter": {"name": "lora", "rank": 16, "alpha": 32.0}}
REPLAY = LORA | {"rehearsal": {"name": "reservoir", "capacity": 800, "share": 0.3}}
WORKS = {
    "hu2022lora": "@misc{hu2022lora,\n  author = {E. Hu},\n  title = {LoRA},\n  year = {2022},\n}",
    "digits": "@misc{digits,\n  author = {C. Kaynak},\n  title = {Digits},\n  year = {1998},\n}",
}
MODULES = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
SETTING = Setting(
    benchmark="Demo",
    description="Eight small tasks.",
    orders={"default": tuple(NAMES)},
    initial=(),
    fraction=0.5,
    learnt_from=dict.fromkeys(NAMES, 3840),
    models=(ModelView("Demo LLaVA", "workflow/weights/demo-llava", "fp32", f"in `{MODULES}`"),),
    methods=(
        MethodView("LoRA", "Demo LLaVA", LORA, TRAINING, dict.fromkeys(NAMES, 32), ("hu2022lora",)),
        MethodView("Replay 30 %", "Demo LLaVA", REPLAY, TRAINING, dict.fromkeys(NAMES, 32)),
    ),
    references=(
        ReferenceView("Zero-shot", "zero-shot"),
        ReferenceView("Pictures blanked", "direct", "LoRA", "Demo, blind"),
    ),
    split="test",
    sample=None,
    lengths={name: "4" if k % 2 else "8" for k, name in enumerate(NAMES)},
    as_published=False,
    judges=(),
    used=(
        Used("Digits", "CC BY 4.0 (UCI, through scikit-learn)", ("digits",)),
        Used("A model", "see huggingface.co/someone/a_model-with-a-name-that-is-longer-than-any"),
    ),
    cites=(),
    works=WORKS,
)
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
        "demo", "Palimpsest demo", "demo", tasks, tuple(experiments), root, "0123456789abcdef",
        setting=SETTING,
    )  # fmt: skip


def build_without_figures(views: list[StudyView], out: Path) -> None:
    """Build a report but for its figures, which take nearly all of the time."""
    with patch("palimpsest.report.figures.draw_all", return_value=[]):
        build(views, out)


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
        rows.append(_row(lineage, (NAMES[stage],), cells))
    return rows


def _single(root: Path, n: int, share: float) -> list[RowView]:
    rows = []
    for i, name in enumerate(NAMES):
        where = f"single-{share}/seed-0/{name}"
        cells = _cells(root, where, 0, n, lambda i: TASKS[i][5] * share, i, [name])
        rows.append(_row(name, (name,), cells))
    return rows


def _joint(root: Path, n: int) -> list[RowView]:
    where = "joint/seed-0/" + "+".join(NAMES)
    cells = _cells(root, where, 0, n, lambda i: min(1, TASKS[i][5] + 0.04), 7)
    return [_row("+".join(NAMES), tuple(NAMES), cells)]


def _row(lineage: str, learnt: tuple[str, ...], cells: dict[str, Path]) -> RowView:
    record = next(iter(cells.values())).parents[3] / "stage/stage.json"
    logs = {task: record.parent / f"logs/{task}.log" for task in cells}
    log = record.parent / "logs/train.log"
    return RowView(lineage, "+".join(learnt), learnt, cells, record, log, logs)


def _cells(root: Path, where: str, seed, n, ability, stage: int = -1, only=NAMES) -> dict:
    top = root / "stages/demo/demo-llava" / where
    if stage >= 0:
        (top / "stage").mkdir(parents=True)
        (top / "stage/stage.json").write_text(json.dumps(COST | MADE))
    cells = {}
    for i, name in enumerate(NAMES):
        if name in only:
            cells[name] = top / "cells/test" / name / "metric"
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
        path.parent / "predictions.parquet",
    )  # fmt: skip
    write_scores(path, spec[3], ids, right_N.astype(float), kind)


def write_scores(
    path: Path, metric: str, ids: list[str], score_N, kind_N, combination_N=None, said_N=None
) -> None:
    """Write the two files of a measure's directory; a score that is NaN was no number.

    Unless it is told what is said, a wrong answer is so in the right form or in another.
    """
    path.mkdir(parents=True, exist_ok=True)
    wrong_N = np.where(kind_N, "wrong", "other")
    said_N = np.where(score_N >= 0.5, "right", wrong_N) if said_N is None else said_N
    outcome = {"id": ids, "score": score_N, "right_kind": kind_N, "said": list(said_N)}
    outcome |= {"combination": combination_N} if combination_N else {}
    pq.write_table(pa.table(outcome), path / "outcomes.parquet")
    parsed_N = score_N[np.isfinite(score_N)]
    scores = {
        "task": path.parent.name, "metric": metric, "version": 1,
        "value": 100 * float(parsed_N.mean()) if len(parsed_N) else None, "n": len(ids),
        "right_kind": 100 * float(np.mean(kind_N)), "stage_fingerprint": "f" * 16,
        "form": "1",
    }  # fmt: skip
    if len(parsed_N) < len(score_N):
        scores["unparsable"] = len(score_N) - len(parsed_N)
    (path / "scores.json").write_text(json.dumps(scores))


def judge(view: StudyView, name: str = "clerk", every: int = 10) -> StudyView:
    """Score all cells of a study again by a judge that is lenient, and mute on some examples.

    `every`-th replies are no number; all of them if it is 1.
    """
    for cell in {path for e in view.experiments for row in e.rows for path in row.cells.values()}:
        table = pq.read_table(cell / "outcomes.parquet").to_pydict()
        score_N = 0.4 + 0.5 * np.array(table["score"])
        score_N[::every] = np.nan
        write_scores(cell.parent / name, name, table["id"], score_N, table["right_kind"])
    return by_measure(view, judged(name, "The clerk"))


def by_measure(view: StudyView, measure: Measure) -> StudyView:
    """Return the view of the same cells by another measure."""

    def turned(row: RowView) -> RowView:
        cells = {task: path.parent / measure.name for task, path in row.cells.items()}
        return replace(row, cells=cells)

    experiments = tuple(replace(e, rows=tuple(map(turned, e.rows))) for e in view.experiments)
    tasks = tuple(replace(task, chance=np.nan) for task in view.tasks)
    return replace(view, tasks=tasks, experiments=experiments, measure=measure)


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
