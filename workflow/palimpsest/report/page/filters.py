"""What the page's filter asks, and whose a row, a column or a figure is."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from palimpsest.report.results import Results

KINDS = ("method", "model", "order", "task")


def choices(results: Results) -> dict[str, dict[str, str]]:
    """Return for each of KINDS what can be chosen, with its title."""
    views = [group.view for group in results.groups]
    orders = [group.view.order for group in results.sequential]
    return {
        "method": {view.name: view.title for view in views},
        "model": {view.model: view.model for view in views},
        "order": {order: order for order in orders},
        "task": {task.name: task.title for task in results.view.tasks},
    }


def marker(results: Results) -> Callable[[str], Markup]:
    """Return what gives an element that is named by a text the attribute by which it is filtered.

    A text names a group or several that share a title, a difference of two, or a task. The
    attribute is `data-task`, or `data-group` with slugs: "a|b c" is of a or b, and of c.
    """
    slugs: dict[str, list[str]] = {}
    for group in results.groups:
        for name in {group.slug, group.title, group.view.title}:
            slugs.setdefault(name, []).append(group.slug)
    groups = {name: "|".join(own) for name, own in slugs.items()}
    tasks = {
        title: task.name for task in results.view.tasks for title in (task.title, task.heading)
    }

    def marked(text: str) -> Markup:
        if text in tasks:
            return Markup(' data-task="{}"').format(tasks[text])
        parts = [text] if text in groups else text.split(": ")[0].split(" − ")
        if all(part in groups for part in parts):
            return Markup(' data-group="{}"').format(" ".join(groups[part] for part in parts))
        return Markup("")

    return marked
