"""`palimpsest check`: what of a benchmark's data is there, and what is to be fetched, and how."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from palimpsest.config import CONFIG, Benchmark, Download, Task, load
from palimpsest.data.shards import read_manifest
from palimpsest.study import plan


def check(name: str, root: Path) -> str:
    """Return a table of what is there of a benchmark's data below the results directory `root`.

    `name` may be that of a study, which has models to fetch too, and concepts of methods. Nothing
    is changed or fetched.
    """
    if is_study := (CONFIG / f"{name}.yaml").is_file():
        planned = plan(name)
        tasks, wanted = planned.tasks, planned.downloads
    else:
        tasks = load(Benchmark, name).tasks
        wanted = dict.fromkeys(one for task in tasks for one in load(Task, task).downloads)
    fetched = root / "downloads"
    lacking = [lack for lack in wanted if not (fetched / lack / "download.json").is_file()]
    lines = [f"{name}: {len(tasks)} tasks, read from {fetched}"]
    for task in tasks:
        lines += ["", task, *_task(load(Task, task), task, root)]
    return "\n".join([*lines, "", *_next(name, tasks, lacking, is_study)])


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
    manifest = read_manifest(dataset)
    if manifest["task_fingerprint"] != task.fingerprint:
        yield _row("differs", "converted", "from another config or wording: it is made anew")
        return
    splits = manifest["splits"].items()
    counts = (f"{s} {e['examples']:,} (+ {len(e['rejected'])} rejected)" for s, e in splits)
    yield _row("there", "converted", ", ".join(counts))


def _row(state: str, what: str, note: str) -> str:
    return f"  {state:<8} {what:<15} {note}"


def _next(name: str, tasks: tuple[str, ...], lacking: list[str], is_study: bool) -> Iterator[str]:
    """Yield what to do: fetch, put files where they are looked for, or run."""
    configs = {lack: load(Download, lack) for lack in lacking}
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
        run = f"snakemake --profile profiles/local --config study={name}"
        yield f"  {run if is_study else f'palimpsest convert {tasks[0]}, and so on'}"
