"""`palimpsest check`: what of a benchmark's data is there, and what is to be fetched, and how."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from palimpsest.config import Benchmark, Download, Model, Study, Task, load
from palimpsest.data.shards import read_manifest
from palimpsest.study import CONFIG


def check(benchmark: str, root: Path) -> str:
    """Return a table of what is there of a benchmark's data below the results directory `root`.

    `benchmark` may be a study, which has models to fetch too. Nothing is changed or fetched.
    """
    study = None
    if (CONFIG / f"{benchmark}.yaml").is_file():
        study = load(Study, benchmark, CONFIG)
    tasks = load(Benchmark, study.benchmark if study else benchmark, CONFIG).tasks
    wanted = [name for task in tasks for name in load(Task, task, CONFIG).downloads]
    for model in study.models if study else ():
        parts = (load(Model, model, CONFIG).parts or {}).values()
        wanted += (part.split("/")[0] for part in parts)
    lacking = [
        name
        for name in dict.fromkeys(wanted)
        if not (root / "downloads" / name / "download.json").is_file()
    ]
    lines = [f"{benchmark}: {len(tasks)} tasks, read from {root / 'downloads'}"]
    for task in tasks:
        lines += ["", task, *_task(load(Task, task, CONFIG), task, root)]
    return "\n".join([*lines, "", *_next(benchmark, tasks, lacking, root, study is not None)])


def _task(task: Task, name: str, root: Path) -> Iterator[str]:
    """Yield a line for each thing that was looked for."""
    reader = import_module(f"palimpsest.data.readers.{task.reader}")
    if not hasattr(reader, "survey"):
        yield _row("there", "data", "made by Palimpsest: there is nothing to fetch")
        return
    for finding in reader.survey(task.source, root / "downloads"):
        yield _row(finding.state, finding.what, finding.note)
    dataset = root / "data" / name
    if not (dataset / "manifest.json").is_file():
        yield _row("not yet", "converted", f"palimpsest convert {name}")
        return
    splits = read_manifest(dataset)["splits"].items()
    counts = (f"{s} {e['examples']:,} (+ {len(e['rejected'])} rejected)" for s, e in splits)
    yield _row("there", "converted", ", ".join(counts))


def _row(state: str, what: str, note: str) -> str:
    return f"  {state:<8} {what:<15} {note}"


def _next(
    name: str, tasks: tuple[str, ...], lacking: list[str], root: Path, is_study: bool
) -> Iterator[str]:
    """Yield what to do: fetch, put files where they are looked for, or run."""
    configs = {lack: load(Download, lack, CONFIG) for lack in lacking}
    by_hand = {lack: c for lack, c in configs.items() if c.kind == "manual"}
    fetched = {lack: c for lack, c in configs.items() if c.kind != "manual"}
    if fetched:
        yield f"To fetch ({len(fetched)}):"
    for lack, config in fetched.items():
        yield f"  palimpsest download {lack:<20} {config.title}: {config.size}"
        yield f"  {'':40} licence: {config.licence}"
    for lack, config in by_hand.items():
        yield f"By hand: {config.title}, {config.size}"
        yield f"  licence: {config.licence}"
        yield from (f"  {line}" for line in config.instructions.strip().splitlines())
        yield f"  Then: palimpsest download {lack}"
    if not lacking:
        yield "Every download is there. Next:"
        yield (
            f"  snakemake --profile profiles/local --config study={name}"
            if is_study
            else (f"  palimpsest convert {tasks[0]}, and so on")
        )
