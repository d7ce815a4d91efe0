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
    other: the identity of a stage has them where it does. Nobody knows the `held_out` tasks: the
    base and every stage are asked them, to see what learning the others does to a model elsewhere.
    """

    cosmetic: ClassVar = {"title", "cites", "initial", "orders", "held_out", "description"}
    description: str = ""
    fraction: float | None = Field(None, gt=0, lt=1)  # of the training examples; all if not given
    initial: tuple[str, ...] = ()
    orders: dict[str, tuple[str, ...]] = Field(min_length=1)
    held_out: tuple[str, ...] = ()
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
    def _others_are_not_learnt(self) -> Benchmark:
        for key, tasks in (("initial", self.initial), ("held_out", self.held_out)):
            for task in tasks:
                check_task_name(task)
                if task in self.to_learn:
                    raise ValueError(f"{key}: task {task!r} is named in an order, too")
                if tasks.count(task) > 1:
                    raise ValueError(f"{key}: task {task!r} is named twice")
        if both := set(self.initial) & set(self.held_out):
            raise ValueError(f"held_out: task {min(both)!r} is named in `initial`, too")
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task that is evaluated: those known in the end, then those held out."""
        return (*self.known, *self.held_out)

    @property
    def known(self) -> tuple[str, ...]:
        """The tasks that are known in the end: the initial ones, then those to learn."""
        return (*self.initial, *self.to_learn)

    @property
    def to_learn(self) -> tuple[str, ...]:
        """The tasks that stages train on, in the order that is named first."""
        return next(iter(self.orders.values()))
