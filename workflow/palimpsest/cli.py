"""`palimpsest …`: the work of each rule as a sub-command, readable in a log, runnable by hand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from palimpsest import __version__
from palimpsest.config import (
    AS_PUBLISHED,
    CONFIG,
    FIDELITY,
    METRIC,
    RULES,
    Download,
    Evaluation,
    Judge,
    Model,
    Probes,
    Task,
    load,
)
from palimpsest.files import write_json
from palimpsest.imports import hide, quickly
from palimpsest.launch import run_stage
from palimpsest.lineage import Stage
from palimpsest.slurm import seconds_left
from palimpsest.study import RESULTS, scorer, stage_fingerprint

# Each command imports what it needs when it runs: help and plans must not wait for torch.


def check(args: argparse.Namespace) -> None:
    """print which files of a study are there, broken or missing, and how to get them"""
    from palimpsest.check import check

    print(check(args.name, RESULTS))


def download(args: argparse.Namespace) -> None:
    """fetch what a publisher released; what is there already is not fetched again"""
    from palimpsest.data.downloads.download import download

    download(args.download, load(Download, args.download), RESULTS / "downloads" / args.download)


def convert(args: argparse.Namespace) -> None:
    """read a task's dataset as its publisher wrote it, and write Arrow shards"""
    from palimpsest.data.convert import convert

    task = load(Task, args.task)
    convert(
        args.task,
        reader=task.reader,
        source=task.source,
        prompt=task.prompt,
        about={"task_fingerprint": task.fingerprint, "licence": task.licence},
        most_rejected=task.most_rejected,
        out=RESULTS / "data" / args.task,
        root=RESULTS / "downloads",
        threads=args.threads,
    )


def assemble(args: argparse.Namespace) -> None:
    """put a model's weights together from the parts that were published"""
    from importlib import import_module

    model = load(Model, args.model)
    family = import_module(f"palimpsest.models.families.{model.family}")
    if not model.parts or not hasattr(family, "assemble"):
        raise ValueError(
            f"{CONFIG}/models/{args.model}.yaml: parts: none that a model of family "
            f"{model.family!r} is put together from; it is loaded from its `weights`"
        )
    parts = {role: RESULTS / "downloads" / name for role, name in model.parts.items()}
    family.assemble(parts, Path(model.weights))


def export(args: argparse.Namespace) -> None:
    """make a model of a stage: what it has learnt, folded into its weights"""
    _set_threads(args.stage.model)
    with quickly():
        from palimpsest.evaluation.export import export

    export(args.stage, RESULTS, args.out)


def chance(args: argparse.Namespace) -> None:
    """score the most frequent training answer of a task, given to every question"""
    from palimpsest.evaluation.chance import chance

    dataset = RESULTS / "data" / args.task
    write_json(dataset / "chance.json", chance(load(Task, args.task), dataset, args.split))


def pretrain(args: argparse.Namespace) -> None:
    """build the demo's base model from nothing (about an hour)"""
    from palimpsest.training.pretrain import pretrain

    pretrain(args.out, args.seed, minutes=args.minutes)


def embed(args: argparse.Namespace) -> None:
    """embed tasks by a model's eyes and a text encoder: what their similarity is computed from"""
    _set_threads(args.model)
    with quickly():
        from palimpsest.evaluation.embed import embed

    embed(args.model, args.tasks, RESULTS)


def train(args: argparse.Namespace) -> int:
    """train one stage: from its parent's directory to its own"""
    _set_threads(args.stage.model)

    def rank() -> int:
        with quickly():
            from palimpsest.training.stage import train

        # One rank asks Slurm, and the others stop with it; it asks the model, too.
        first = os.environ.get("RANK", "0") == "0"
        asked = _probe(args) if first and args.probes else None
        return train(args.stage, RESULTS, seconds_left() if first else None, asked)

    return rank() if "RANK" in os.environ else run_stage(args.stage, rank)


def evaluate(args: argparse.Namespace) -> None:
    """answer the questions of some tasks with the model as a stage left it"""
    _set_threads(args.stage.model)
    with quickly():
        from palimpsest.evaluation.generate import evaluate

    evaluate(args.stage, args.tasks, RESULTS, _evaluation(args))


def score(args: argparse.Namespace) -> None:
    """score the predictions of a stage's cells; needs no model"""
    from palimpsest.evaluation.score import score_cell
    from palimpsest.tasks import open_task

    evaluation, fingerprint = _evaluation(args), stage_fingerprint(args.stage)
    base = args.stage.base
    for task in args.tasks:
        cell, of_base = (s.cell(RESULTS, evaluation.name, task) for s in (args.stage, base))
        examples = open_task(RESULTS, task, evaluation.split, evaluation.sample)
        answer_format = load(Task, task).answer_format
        for measure in args.measures:
            by = scorer(args.stage.model, task, measure)
            untouched = (of_base, stage_fingerprint(base)) if measure == FIDELITY else None
            score_cell(cell, measure, by, answer_format, examples, fingerprint, untouched)


def judge(args: argparse.Namespace) -> None:
    """have a model rate the predictions of a stage's cells"""
    from palimpsest.tasks import open_task

    evaluation = _evaluation(args)
    cells = [
        (
            args.stage.cell(RESULTS, evaluation.name, task),
            load(Task, task),
            open_task(RESULTS, task, evaluation.split, evaluation.sample),
        )
        for task in args.tasks
    ]
    judge, fingerprint = load(Judge, args.judge), stage_fingerprint(args.stage)
    if judge.kind == "templates":
        with quickly():
            from palimpsest.judging import context

        context.judge_cells(cells, args.judge, judge, fingerprint)
    else:
        from palimpsest.judging.judge import judge_cells

        judge_cells(cells, args.judge, judge, fingerprint, RESULTS, args.sbatch)


def serve(args: argparse.Namespace) -> None:
    """serve the model of a judge, as long as it is asked"""
    from palimpsest.judging.serving import serve

    serve(args.judge, load(Judge, args.judge), RESULTS)


def report(args: argparse.Namespace) -> None:
    """make tables, figures and the page of a study from its scores"""
    from palimpsest.plan import views
    from palimpsest.report import build
    from palimpsest.study import plan

    build(views(plan(args.study)), RESULTS / "reports" / args.study)


def show(args: argparse.Namespace) -> None:
    """print what was forgotten, and where the report is"""
    from palimpsest.report import terminal_table

    out = RESULTS / "reports" / args.study
    print(terminal_table(out))
    print(f"\nThe report: {(out / 'index.html').resolve()}")


def compare(args: argparse.Namespace) -> None:
    """print what differs between two reports: config, data, versions and numbers"""
    from palimpsest.report.compare import compare

    own = RESULTS / "reports"
    print(compare(*[Path(one) if Path(one).is_dir() else own / one for one in args.reports]))


def plan(args: argparse.Namespace) -> None:
    """print what a study comes to: stages, cells, what is shared and done, time and GPU-hours"""
    from palimpsest.plan import describe
    from palimpsest.study import plan

    print(describe(plan(args.study)))


def targets(args: argparse.Namespace) -> None:
    """print the files to ask Snakemake for: the cells of a method, a seed, a task, or all"""
    from palimpsest.plan import targets
    from palimpsest.study import plan

    print(*targets(plan(args.study), args.method, args.seed, args.task, args.stages), sep="\n")


def status(args: argparse.Namespace) -> None:
    """print which stages and cells are done, at work, failed or waiting, and why"""
    from palimpsest.status import describe, describe_failed
    from palimpsest.study import plan

    text = describe_failed if args.failed else describe
    print(text(plan(args.study), datetime.now(UTC)))


def parser() -> argparse.ArgumentParser:
    """Return the parser of all sub-commands."""
    top = argparse.ArgumentParser(prog="palimpsest", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="command")

    def command(work: Callable, *names: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(work.__name__, help=work.__doc__, description=work.__doc__)
        sub.set_defaults(work=work)
        for name in names:
            sub.add_argument(name, **ARGUMENTS[name])
        return sub

    command(plan, "study")
    command(targets, "study", "--method", "--seed", "--task", "--stages")
    command(status, "study", "--failed")
    command(check, "name")
    command(download, "download")
    command(convert, "task", "--threads")
    command(assemble, "model")
    command(export, "stage").add_argument("out", type=Path, help="directory of the model")
    command(chance, "task", "--split")
    pretraining = command(pretrain)
    pretraining.add_argument("out", type=Path, help="directory of the base model to be made")
    pretraining.add_argument("--seed", type=int, default=0)
    pretraining.add_argument("--minutes", type=float, help="stop after this time")
    command(embed, "model").add_argument("tasks", nargs="+", help=ARGUMENTS["task"]["help"])
    command(train, "stage", "--probes", "--sample", "--split")
    command(evaluate, "stage", "--tasks", "--split", "--sample", "--generation", "--batch")
    command(score, "stage", "--tasks", "--split", "--sample", "--generation", "--measures")
    command(judge, "stage", "--judge", "--tasks", "--split", "--sample", "--generation", "--sbatch")
    command(serve, "judge")
    command(report, "study")
    command(show, "study")
    command(compare).add_argument("reports", nargs=2, metavar="report", help=OF_REPORT)
    return top


OF_REPORT = "a study, or the directory of a report, of another clone too"
ARGUMENTS = {
    "study": {"help": "config/<study>.yaml"},
    "name": {"help": "of a study (config/<name>.yaml) or a benchmark (config/benchmarks/)"},
    "download": {"help": "config/downloads/<download>.yaml"},
    "task": {"help": "config/tasks/<task>.yaml"},
    "model": {"help": "config/models/<model>.yaml"},
    "stage": {
        "type": Stage.parse,
        "help": "its path below results/stages/: benchmark/model/method/seed-0/lineage",
    },
    "judge": {"help": "config/judges/<judge>.yaml"},
    "--threads": {
        "type": int,
        "default": len(os.sched_getaffinity(0)),
        "help": "that look at pictures (default: one for each core)",
    },
    "--judge": {"required": True, "help": "config/judges/<judge>.yaml"},
    "--sbatch": {"default": "", "help": "options of sbatch for the job of the judge's server"},
    "--tasks": {"nargs": "+", "required": True, "help": "tasks whose cells are wanted"},
    "--split": {"default": "test", "help": "split of the questions (default: test)"},
    "--probes": {"type": int, "help": "ask known tasks, --sample examples of each, so often"},
    "--sample": {"type": int, "help": "only so many examples of a task, drawn from the split"},
    "--generation": {
        "default": "consistent",
        "choices": ["consistent", AS_PUBLISHED],
        "help": "how answers are made: as the model was trained, or as released scripts do it",
    },
    "--measures": {
        "nargs": "+",
        "default": [METRIC],
        "choices": RULES,
        "help": "by the task's metric, by the one that follows the released scorer, or by how far "
        "the answers are still those of the base model",
    },
    "--method": {"help": "only this method"},
    "--seed": {"type": int, "help": "only this seed"},
    "--task": {"help": "only cells of this task"},
    "--stages": {"action": "store_true", "help": "the stages, and not their cells"},
    "--failed": {"action": "store_true", "help": "only what failed, and how its logs end"},
    "--batch": {"type": int, "default": 64, "help": "questions answered together (default: 64)"},
}


# What libraries import where it is installed, and these commands never use: a second of every job.
OF_TABLES, OF_SCIENCE = ("pandas",), ("scipy", "sklearn")
UNUSED = {
    **dict.fromkeys((chance, convert, score), OF_TABLES),
    **dict.fromkeys((embed, evaluate, export, judge, train), OF_TABLES + OF_SCIENCE),
}


def _probe(args: argparse.Namespace) -> Callable | None:
    with quickly():
        from palimpsest.evaluation.probe import probe

    probes = Probes(every=args.probes, sample=args.sample)
    return probe(args.stage, RESULTS, probes, args.split)


def _evaluation(args: argparse.Namespace) -> Evaluation:
    """Return what a command says of how cells are computed."""
    named = {name: value for name, value in vars(args).items() if name in Evaluation.model_fields}
    return Evaluation(**{"batch": 1} | named)


def _set_threads(model: str) -> None:
    """Say how many threads a process may use, and that they sleep at barriers, before torch."""
    threads = load(Model, model).resources.threads
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main() -> int:
    """Run a sub-command; a wrong input is told in a line, without a traceback."""
    try:
        args = parser().parse_args()
        hide(UNUSED.get(args.work, ()))
        return args.work(args) or 0
    except ValueError as error:
        print(f"palimpsest: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
