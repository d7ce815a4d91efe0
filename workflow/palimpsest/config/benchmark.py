"""A benchmark: config/benchmarks/<benchmark>.yaml."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from palimpsest.config.science import Science
from palimpsest.lineage import check_task_name


class Benchmark(Science):
    """Tasks and the orders in which they are learnt; `pictures: blank` hides every picture.

    The base already knows the `initial` tasks: they are evaluated and stand first in the history,
    and no stage trains on them. That changes the numbers of methods that look back, and of no
    other: the identity of a stage has them where it does.
    """

    cosmetic: ClassVar = {"title", "initial", "orders", "description"}
    description: str = ""
    fraction: float | None = Field(None, gt=0, lt=1)  # of the training examples; all if not given
    initial: tuple[str, ...] = ()
    orders: dict[str, tuple[str, ...]] = Field(min_length=1)
    pictures: Literal["real", "blank"] = "real"

    @field_validator("orders")
    @classmethod
    def _orders_name_the_same_tasks(cls, orders: dict) -> dict:
        first = next(iter(orders.values()))
        for name, order in orders.items():
            for task in order:
                check_task_name(task)
                if order.count(task) > 1:
                    raise ValueError(f"order {name!r} names task {task!r} twice")
            if set(order) != set(first):
                odd = ", ".join(sorted(set(order) ^ set(first)))
                raise ValueError(f"order {name!r} does not name the tasks of the first: {odd}")
        return orders

    @model_validator(mode="after")
    def _initial_tasks_are_not_learnt(self) -> Benchmark:
        for task in self.initial:
            check_task_name(task)
            if self.tasks.count(task) > 1:
                where = "in an order, too" if task in self.to_learn else "twice"
                raise ValueError(f"initial: task {task!r} is named {where}")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task that is evaluated: the initial ones, then those to learn."""
        return (*self.initial, *self.to_learn)

    @property
    def to_learn(self) -> tuple[str, ...]:
        """The tasks that stages train on, in the order that is named first."""
        return next(iter(self.orders.values()))
