"""What of a study is done, at work, failed or waiting, and how the logs of what failed end.

All of it is read from the results, from Slurm's queue and from the processes of this machine: no
job writes down its state for this.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import shorten
from typing import Any

import psutil

from palimpsest import lock, slurm
from palimpsest.attempts import SLURM_SAYS, STOPPED, Attempt, Attempts, checkpoints
from palimpsest.config import RULES, Model, load
from palimpsest.files import read_json
from palimpsest.lineage import Stage
from palimpsest.logs import last_lines, tail
from palimpsest.study import RESULTS, Plan

STATES = ("done", "running", "queued", "stopped", "failed", "waiting")
LOGS = RESULTS / "logs"
LONGEST_WHY = 100  # characters
MOST_SHOWN = 10  # failures whose logs are shown
MOST_NAMED = 4  # workers in a line
COMMANDS = ("palimpsest", "palimpsest.cli")


@dataclass(frozen=True)
class Worker:
    """A job of Slurm, or a process, that is at work or will be."""

    name: str
    state: str  # running or queued
    reason: str = ""  # why it is queued


@dataclass(frozen=True)
class WorkflowJob:
    """A job of the workflow, and how far it came."""

    name: str  # as Snakemake tells it: train demo/demo-llava/…
    state: str  # one of STATES
    detail: str = ""  # how far, or why
    worker: str = ""
    log: Path = Path()
    comment: str = ""  # by which Slurm knows it


@dataclass
class Cells:
    """The cells of a stage: how many are in each state, and the jobs that began or will soon."""

    ready: bool  # the stage is trained
    counts: Counter[str] = field(default_factory=Counter)
    works: list[WorkflowJob] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many are not scored yet."""
        return self.counts.total() - self.counts["done"]


@dataclass(frozen=True)
class Found:
    """The state of a study."""

    stages: dict[Stage, WorkflowJob]
    cells: dict[Stage, Cells]
    others: list[WorkflowJob]  # data and report: what began and is not done

    @property
    def failed(self) -> list[WorkflowJob]:
        """Every job that failed."""
        of_cells = [work for cells in self.cells.values() for work in cells.works]
        works = [*self.others, *self.stages.values(), *of_cells]
        return [work for work in works if work.state == "failed"]


def describe(plan: Plan, now: datetime) -> str:
    """Return the state of a study: totals, a line for each stage, a line for each stage's cells."""
    found = look(plan, now)
    stages = Counter(work.state for work in found.stages.values())
    cells = sum((cells.counts for cells in found.cells.values()), Counter())
    lines = [
        f"{plan.name}: {plan.study.title}",
        "",
        f"stages   {len(found.stages)} to train: {_counts(stages)}",
        f"cells    {len(plan.cells)} to score: {_counts(cells)}",
        "",
        *(line for stage, work in found.stages.items() for line in _stage_lines(stage, work)),
        "",
        *_cells_lines(found.cells),
    ]
    if failed := found.failed:
        command = f"`palimpsest status {plan.name} --failed`"
        lines += [f"{_number(len(failed), 'job')} failed: {command} tells how"]
    return "\n".join(lines).rstrip()


def describe_failed(plan: Plan, now: datetime) -> str:
    """Return what failed, why, and how its log ends: what a run of Snakemake that failed says."""
    found = look(plan, now)
    failed, stopped = found.failed, [s for s, w in found.stages.items() if w.state == "stopped"]
    lines = [f"{_number(len(failed), 'job')} of {plan.name} failed:", ""]
    if not failed:
        lines = [f"No job of {plan.name} has failed, as far as its logs tell.", ""]
    for work in failed[:MOST_SHOWN]:
        lines += [*_failure_lines(work), ""]
    if more := failed[MOST_SHOWN:]:
        lines += [f"And {len(more)} more, which `palimpsest status {plan.name}` names.", ""]
    if stopped:
        number = _number(len(stopped), "stage")
        lines += [f"{number} stopped with a checkpoint; the same command goes on from there:"]
        lines += [f"  {stage}" for stage in stopped]
    return "\n".join(lines).rstrip()


def look(plan: Plan, now: datetime) -> Found:
    """Return the state of every job of a study; asks Slurm once for its queue."""
    at_work = _at_work()
    manifests = {task: RESULTS / "data" / task / "manifest.json" for task in plan.tasks}
    unread = {task for task, manifest in manifests.items() if not manifest.exists()}
    stages: dict[Stage, WorkflowJob] = {}
    for stage in plan.trained:  # parents come first
        stages[stage] = _training(stage, at_work, now) or _waiting(stage, stages, unread)
    cells = _cells(plan, stages, at_work)
    scored = not any(of_stage.left for of_stage in cells.values())
    others = _others(plan, scored, at_work)
    return Found(stages, cells, [work for work in others if work])


def _at_work() -> dict[str, Worker]:
    """Return who is at work, by the comment of a job and by its id in Slurm."""
    found = {comment: Worker(name, "running") for comment, name in _processes()}
    jobs = slurm.queue(Path.cwd())
    for job in sorted(jobs, key=lambda job: job.state in slurm.ACTIVE):  # of two, that one wins
        if job.state in slurm.ACTIVE:
            worker = Worker(f"job {job.id} on {job.nodes}", "running")
        else:
            waits = f", after {job.waits_for}" if job.waits_for else ""
            advice = f": scontrol release {job.id}" if job.reason.endswith("held") else ""
            worker = Worker(f"job {job.id}", "queued", f"{job.reason}{waits}{advice}")
        found[job.id] = found[job.comment] = worker
    return found


def _processes() -> Iterator[tuple[str, str]]:
    """Yield what processes of this machine do in this directory, as the comment of such a job."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        starts = [n for n, word in enumerate(words[:3]) if Path(word).name in COMMANDS]
        if not starts or process.info["cwd"] != str(Path.cwd()):
            continue
        rule, *target = words[starts[0] + 1 :][:2] or [""]
        rest = words[starts[0] + 3 :]
        judge = rest[rest.index("--judge") + 1 :][:1] if "--judge" in rest else []
        others = [(*target, word, *judge) for word in rest]  # one may be a cell's task
        for wildcards in ((), target, (*target, *judge), *others):
            yield slurm.job_comment(rule, *wildcards), f"process {process.pid}"


def _training(stage: Stage, at_work: dict[str, Worker], now: datetime) -> WorkflowJob | None:
    """Return how far a stage came; None if it has not begun."""
    record, resume = stage.directory(RESULTS) / "stage.json", stage.resume(RESULTS)
    log = LOGS / "stages" / stage.path / "train.log"
    name = f"train {stage}"
    if record.exists():
        return WorkflowJob(name, "done", _done(read_json(record)), log=log)
    worker = at_work.get(slurm.job_comment("train", stage.path))
    if not worker and (holder := lock.holder(resume)):
        worker = at_work.get(holder["job"]) or Worker(lock.name(holder), "running")
    last = Attempts(resume).last
    if worker and worker.state == "running":
        return WorkflowJob(name, "running", _pace(last, resume, now), worker.name, log)
    if worker:
        return WorkflowJob(name, "queued", worker.reason, worker.name, log)
    if last:
        why = Attempts.why(last)
        by = f"job {last.job} on {last.host}" if last.job else f"process {last.pid} on {last.host}"
        state = "stopped" if why in STOPPED else "failed"
        return WorkflowJob(name, state, _end(why, last, resume), by, log)
    # The rule makes the one, and a finished stage leaves the other.
    if (resume / "train.log").exists() and not (resume / "stage.json").exists():
        return WorkflowJob(name, "failed", "before it began", log=log)
    return None


def _waiting(stage: Stage, stages: dict[Stage, WorkflowJob], unread: set[str]) -> WorkflowJob:
    before = stages.get(stage.parent)
    why = "for its data" if unread.intersection(stage.lineage.last) else ""
    why = "for the stage before it" if before and before.state != "done" else why
    return WorkflowJob(f"train {stage}", "waiting", why)


def _done(record: dict[str, Any]) -> str:
    restarts = len(record["attempts"]) - 1
    again = f", {_number(restarts, 'restart')}" if restarts else ""
    return f"{record['steps']} steps in {_clock(record['wall_seconds'])}{again}"


def _pace(last: Attempt | None, resume: Path, now: datetime) -> str:
    """Return the step that a running attempt has taken, and how long the rest will take."""
    if last is None or last.why or last.num_steps is None:
        return "starting"
    step = _step(last, resume)
    text = f"step {step} of {last.num_steps}"
    if step == last.after_step:
        return text
    elapsed = (now - datetime.fromisoformat(last.begun)).total_seconds()
    left = elapsed / (step - last.after_step) * (last.num_steps - step)
    return f"{text}, {_clock(left)} left"


def _end(why: str, last: Attempt, resume: Path) -> str:
    """Say after which step an attempt ended and why, and where the next one goes on."""
    step, why = _step(last, resume), shorten(why, LONGEST_WHY).rstrip(".")
    ended = f"after step {step} of {last.num_steps}" if step else "before its first step"
    left = checkpoints(resume)
    saved = int(left[-1].name.removeprefix("step-")) if left else 0
    where = "goes on from there" if saved == step else f"goes on after step {saved}"
    return f"{ended}: {why}; its next attempt {where if saved else 'starts anew'}"


def _step(last: Attempt, resume: Path) -> int:
    """Return the last step that an attempt has taken."""
    before = last.after_step or 0
    lines = tail(resume / "metrics.jsonl").splitlines()
    whole = [line for line in lines[-2:] if line.endswith("}")]  # the last may be in the making
    return max(before, json.loads(whole[-1])["step"]) if whole and last.num_steps else before


def _cells(
    plan: Plan, stages: dict[Stage, WorkflowJob], at_work: dict[str, Worker]
) -> dict[Stage, Cells]:
    """Return the cells of every stage; a job serves one of them, or all of a stage."""
    tasks: dict[Stage, list[str]] = {}
    for stage, task in plan.cells:
        tasks.setdefault(stage, []).append(task)
    found = {}
    for stage, names in tasks.items():
        cells = Cells(ready=stage not in stages or stages[stage].state == "done")
        left = [task for task in names if not plan.is_scored(stage, task)]
        cells.counts["done"] = len(names) - len(left)
        each = plan.study.evaluation.fan_out == "cell"
        for served in [[task] for task in left] if each else [left] if left else []:
            works = _evaluations(plan, stage, served, at_work) if cells.ready else []
            cells.counts[works[0].state if works else "waiting"] += len(served)
            cells.works += works
        found[stage] = cells
    return found


def _evaluations(
    plan: Plan, stage: Stage, tasks: list[str], at_work: dict[str, Worker]
) -> list[WorkflowJob]:
    """Return how far the jobs are that answer, score or judge some cells, those at work first.

    One that has not begun is left out.
    """
    evaluation = plan.study.evaluation
    task = tasks[:1] if evaluation.fan_out == "cell" else []
    answers = [plan.cell(stage, task) / "predictions.parquet" for task in tasks]
    jobs = [("evaluate",)]
    source = stage.directory(RESULTS) / "stage.json" if stage.parent else None
    if all(path.exists() for path in answers):
        scores = [path for task in tasks for path in plan.scores(stage, task)]
        missing = dict.fromkeys(path.parent.name for path in scores if not path.exists())
        jobs = dict.fromkeys(("score",) if m in RULES else ("judge", m) for m in missing)
        source = answers[0]
    works = []
    for rule, *judge in jobs:
        comment = slurm.job_comment(rule, stage.path, *task, *judge)
        log = "-".join((rule, *judge, evaluation.name, *task))
        name = " on ".join((" by ".join((f"{rule} {stage}", *judge)), *task))
        path = LOGS / "stages" / stage.path / f"{log}.log"
        works.append(_begun(name, comment, path, source, at_work))
    return sorted(filter(None, works), key=lambda work: STATES.index(work.state))


def _others(plan: Plan, scored: bool, at_work: dict[str, Worker]) -> Iterator[WorkflowJob | None]:
    """Yield the jobs of data, weights and report whose output is missing; None if not begun."""
    for name in plan.downloads:
        log = LOGS / "downloads" / f"{name}.log"
        if not (RESULTS / "downloads" / name / "download.json").exists():
            comment = slurm.job_comment("download", name)
            yield _begun(f"download {name}", comment, log, None, at_work)
    for name in plan.models:
        model = load(Model, name)
        if model.is_made and not (RESULTS / "models" / name / "config.json").exists():
            rule, log = "assemble" if model.parts else "export", LOGS / "models" / f"{name}.log"
            yield _begun(f"{rule} {name}", slurm.job_comment(rule, name), log, None, at_work)
    for task in plan.data:
        data, logs = RESULTS / "data" / task, LOGS / "data" / task
        manifest, comment = data / "manifest.json", slurm.job_comment("convert", task)
        if not manifest.exists():
            yield _begun(f"convert {task}", comment, logs / "convert.log", None, at_work)
        elif task in plan.tasks and not (data / "chance.json").exists():
            comment = slurm.job_comment("chance", task)
            yield _begun(f"chance of {task}", comment, logs / "chance.log", manifest, at_work)
    out, log = RESULTS / "reports" / plan.name, LOGS / "reports" / f"{plan.name}.log"
    if scored and not out.exists():
        yield _begun(f"report {out}", slurm.job_comment("report"), log, None, at_work)


def _begun(
    name: str, comment: str, log: Path, source: Path | None, at_work: dict[str, Worker]
) -> WorkflowJob | None:
    """Return a job whose output is missing: at work, or failed if it left a log; else None.

    A log that is older than the job's source tells of an earlier life.
    """
    if worker := at_work.get(comment):
        return WorkflowJob(name, worker.state, worker.reason, worker.name, log)
    if not log.exists() or (source and _time(source) > _time(log)):
        return None
    return WorkflowJob(name, "failed", log=log, comment=comment)


def _by_slurm(work: WorkflowJob) -> tuple[str, str]:
    """Return how the Slurm job that wrote a log ended, and its name; "" if there was none."""
    rule, _, wildcards = work.comment.partition("_wildcards_")
    runs = sorted((LOGS / "slurm" / rule / wildcards).glob("*.log"), key=_time)
    if not runs or _time(runs[-1]) < _time(work.log):
        return "", ""
    job = runs[-1].stem
    return SLURM_SAYS.get(slurm.state(job) or "", ""), f"job {job}"


def _stage_lines(stage: Stage, work: WorkflowJob) -> list[str]:
    told = ", ".join(text for text in (work.worker, work.detail) if text)
    line = f"  {work.state:7}  {stage}  {told}".rstrip()
    return [line, f"  {'':7}  {work.log}"] if work.state == "failed" else [line]


def _cells_lines(found: dict[Stage, Cells]) -> list[str]:
    """Return a line for each stage that is trained and whose cells are not all scored."""
    left = {stage: cells for stage, cells in found.items() if cells.left}
    lines = [_cells_line(stage, cells) for stage, cells in left.items() if cells.ready]
    if later := len(left) - len(lines):
        lines.append(f"  and those of {_number(later, 'stage')} not trained yet")
    return ["cells to score", *lines, ""] if lines else []


def _cells_line(stage: Stage, cells: Cells) -> str:
    names = list(dict.fromkeys(w.worker for w in cells.works if w.state != "failed"))
    more = ["…"] if len(names) > MOST_NAMED else []
    logs = [work.log for work in cells.works if work.state == "failed"]
    why = (last_lines(logs[0]) or [f"{logs[0]} tells nothing"])[-1] if logs else ""
    parts = [_counts(cells.counts), ", ".join(names[:MOST_NAMED] + more), shorten(why, LONGEST_WHY)]
    return f"  {stage}  {'; '.join(part for part in parts if part)}"


def _failure_lines(work: WorkflowJob) -> list[str]:
    why, worker = (work.detail, work.worker) if work.detail else _by_slurm(work)
    ends = last_lines(work.log)
    return [
        f"{work.name}    ({worker})" if worker else work.name,
        *([f"  {why}"] if why else []),
        f"  log: {work.log}" + ("" if ends else ", which tells nothing"),
        *(f"    {line}" for line in ends),
    ]


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count > 1 else "")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _time(path: Path) -> float:
    return path.stat().st_mtime
