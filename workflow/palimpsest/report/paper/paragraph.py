"""The paragraphs on a study's settings that a paper has, and what its works and licences are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import palimpsest
from palimpsest.files import read_json
from palimpsest.report.paper.latex import Table, cite, paragraphs, tex_paragraphs
from palimpsest.report.results import Results
from palimpsest.report.sections.costs import records
from palimpsest.report.spec import DIRECT, JOINT, ZERO_SHOT, MethodView, ReferenceView, Setting
from palimpsest.report.statistics.bootstrap import LEVEL, RESAMPLES, SEED

PROTOCOLS = {
    DIRECT: "each task learnt by itself",
    JOINT: "all tasks learnt at once",
    ZERO_SHOT: "the model as it was",
}
Paragraph = tuple[str, str]  # heading, Markdown


def write(results: Results, out: Path) -> None:
    """Write methods.md, methods.tex and references.bib."""
    written = methods(results)
    (out / "methods.md").write_text(paragraphs(written), encoding="utf-8")
    (out / "methods.tex").write_text(tex_paragraphs(written), encoding="utf-8")
    works = results.view.setting.works.values()
    (out / "references.bib").write_text("\n\n".join(works) + "\n" * bool(works), encoding="utf-8")


def methods(results: Results) -> list[Paragraph]:
    """Return what an author says of how the numbers came about, with the exact settings."""
    setting = results.view.setting
    return [
        ("Benchmark", _benchmark(results, setting)),
        ("Models", _models(setting)),
        ("Methods", _methods(results, setting)),
        ("Training", _training(results, setting)),
        ("Evaluation", _evaluation(results, setting)),
        ("Statistics", _statistics(results)),
        ("Software", _software(results)),
    ]


def licence_tables(results: Results) -> list[Table]:
    """Return a row for each thing that others made: its licence, and the works that it is from."""
    if results.view.setting is None:
        return []
    of_licence = _by_value({one: (one.licence, one.cites) for one in results.view.setting.used})
    rows = [
        ["; ".join(one.title for one in same), licence, cite(cites).strip() or "–"]
        for (licence, cites), same in of_licence.items()
    ]
    caption = (
        "Data, models and their licences, as far as they are known; what a licence asks for is the "
        "user's to see to"
    )
    return [("licences", caption, ["", "licence", "works"], rows)]


def _benchmark(results: Results, setting: Setting) -> str:
    view = results.view
    sizes = [
        ", ".join(_sizes(results, setting, task.name) for task in tasks) + cite(cites)
        for cites, tasks in groupby(view.tasks, lambda task: task.cites)
    ]
    said = [
        f"The benchmark is {setting.benchmark}{cite(setting.cites)}.",
        setting.description,
        f"Its tasks, with their examples that are learnt from / asked: {', '.join(sizes)}.",
    ]
    if setting.fraction:
        said.append(f"Stages learn from a fraction {setting.fraction:g} of the former.")
    if setting.initial:
        said.append(f"What the models know before: {_titles(results, setting.initial)}.")
    for order, tasks in setting.orders.items():
        said.append(f"Order {order}: {_titles(results, tasks)}.")
    if view.held_out:
        held_out = _titles(results, [task.name for task in view.held_out])
        said.append(f"Never learnt, and asked of every stage: {held_out}.")
    return " ".join(filter(None, said))


def _sizes(results: Results, setting: Setting, task: str) -> str:
    learnt, asked = setting.learnt_from.get(task, 0), _scored(results, task)[2]
    return f"{results.view.task(task).title} ({learnt:,} / {asked:,})"


def _models(setting: Setting) -> str:
    return " ".join(
        f"{m.title}{cite(m.cites)}: {m.weights}; in {m.precision}; {m.modules}."
        for m in setting.models
    )


def _methods(results: Results, setting: Setting) -> str:
    seeds = sorted({e.seed for e in results.view.experiments if e.seed is not None})
    said = ["Tasks are learnt one after another: a stage starts from what the one before it left."]
    for parts, same in _grouped(setting, lambda method: method.parts):
        said.append(f"{_whose(setting, same, cited=True)}: {'; '.join(_parts(parts))}.")
    if setting.references:
        said.append(f"References: {'; '.join(map(_reference, setting.references))}.")
    said.append(f"Seeds: {', '.join(map(str, seeds)) or 'none'}.")
    return " ".join(said)


def _reference(one: ReferenceView) -> str:
    method = f", by {one.method}" if one.method else ""
    benchmark = f", on {one.benchmark}" if one.benchmark else ""
    return f"{one.title} ({PROTOCOLS[one.protocol]}{method}{benchmark})"


def _parts(parts: dict[str, Any]) -> Iterable[str]:
    """Yield each part of a method by its axis and name, with its settings."""
    for axis, part in parts.items():
        if isinstance(part, dict):
            own = ", ".join(_settings({key: v for key, v in part.items() if key != "name"}))
            yield f"{axis} {part['name']}" + (f" ({own})" if own else "")
        elif part:
            yield "the projector is trained, too"


def _settings(settings: dict[str, Any]) -> Iterable[str]:
    """Yield settings as words, those inside of others by both their names."""
    for key, value in settings.items():
        words = key.replace("_", " ")
        if isinstance(value, dict):
            yield from (f"{words} {inner}" for inner in _settings(value))
        else:
            yield f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"


def _training(results: Results, setting: Setting) -> str:
    said = ["The optimiser is AdamW."]
    for (training, batches), same in _grouped(setting, lambda m: (m.training, m.batches)):
        batch, whose = _shared_out(results, batches), _whose(setting, same)
        said.append(f"{whose}: batches of {batch} examples, {_optimised(training)}.")
    return " ".join(said)


def _optimised(training: dict[str, Any]) -> str:
    t = training
    unit = "steps" if "steps" in t else "epochs"
    length = f"{t[unit]:g} {unit if t[unit] > 1 else unit[:-1]}"
    rate = f"learning rate {t['learning_rate']:g}"
    if "projector_learning_rate" in t:
        rate += f" ({t['projector_learning_rate']:g} for the projector)"
    schedule = f"{t['schedule']} schedule with a warm-up over {100 * t['warmup']:g} % of the steps"
    betas = " and ".join(f"{beta:g}" for beta in t["betas"])
    return (
        f"{length} a stage, {rate}, {schedule}, weight decay {t['weight_decay']:g}, betas {betas}, "
        f"gradients clipped at norm {t['gradient_clip']:g}"
    )


def _evaluation(results: Results, setting: Setting) -> str:
    view = results.view
    which = f"{setting.sample:,} examples a task" if setting.sample else "all examples"
    scored = {task.name: _scored(results, task.name) for task in view.tasks}
    metrics = {task: f"{metric} {version}".strip() for task, (metric, version, _) in scored.items()}
    said = [
        f"Answers are decoded greedily, for {which} of the {setting.split} split, with at most so "
        f"many new tokens: {_shared_out(results, setting.lengths)}.",
        f"{view.measure.title}, with their versions: {_shared_out(results, metrics)}.",
    ]
    if setting.as_published:
        said.insert(1, "The models are asked as the released scripts ask them.")
    if setting.judges:
        judges = "; ".join(f"{judge.title}{cite(judge.cites)}" for judge in setting.judges)
        said.append(f"Judges of answers: {judges}.")
    return " ".join(said)


def _statistics(results: Results) -> str:
    said = [
        f"Intervals are {100 * LEVEL:g} % percentile bootstrap intervals, of {RESAMPLES:,} "
        f"resamples of the test examples (seed {SEED}); one draw of examples serves every stage "
        "and method."
    ]
    if any(len(group.matrices) > 1 for group in results.groups):
        said.append("What seeds say of training again is added by a t distribution.")
    if len(results.sequential) > 1:
        said.append(
            "Differences between methods are paired, and corrected for the number of pairs by a "
            "bootstrap of the largest deviation."
        )
    return " ".join(said)


def _software(results: Results) -> str:
    """Return the commits and versions of the stages, by their records, and of the report."""
    paths = dict.fromkeys(path for e in results.view.experiments for path in records(e))
    found = [read_json(path) for path in paths]
    commits = dict.fromkeys(record["commit"] for record in found if "commit" in record)
    versions = dict.fromkeys(
        f"{package} {version}"
        for record in found
        for package, version in record.get("versions", {}).items()
        if package != "palimpsest"
    )
    said = [f"Palimpsest {palimpsest.__version__}; the report was made at {results.view.commit}."]
    if commits:
        said.append(f"Stages were trained at {', '.join(commits)}, with {', '.join(versions)}.")
    return " ".join(said)


def _whose(setting: Setting, same: Sequence[MethodView], *, cited: bool = False) -> str:
    """Return which methods are meant, and of which models if not of all."""
    methods = {method.title: cite(method.cites) if cited else "" for method in same}
    models = dict.fromkeys(method.model for method in same)
    of = "" if len(models) == len(setting.models) else f" of {', '.join(models)}"
    return "; ".join(title + works for title, works in methods.items()) + of


def _grouped(
    setting: Setting, key: Callable[[MethodView], Any]
) -> Iterable[tuple[Any, list[MethodView]]]:
    """Return the methods that have the same, in the order of the first of each."""
    groups: dict[str, tuple[Any, list[MethodView]]] = {}
    for method in setting.methods:
        groups.setdefault(repr(key(method)), (key(method), []))[1].append(method)
    return groups.values()


def _shared_out(results: Results, values: dict[str, Any]) -> str:
    """Write values of tasks: each with the tasks that have it, unless all have the same."""
    found = _by_value(values)
    each = (f"{value} ({_titles(results, tasks)})" for value, tasks in found.items())
    return ", ".join(each) if len(found) > 1 else str(*found)


def _by_value(values: dict[Any, Any]) -> dict[Any, list[Any]]:
    """Return those that have each value."""
    found: dict[Any, list[Any]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def _scored(results: Results, task: str) -> tuple[str, Any, int]:
    """Return a task's metric, its version, and how many of its examples were asked."""
    return results.metrics.get(task, (results.view.task(task).metric, "", 0))


def _titles(results: Results, tasks: Iterable[str]) -> str:
    return "; ".join(results.view.task(task).title for task in tasks)
