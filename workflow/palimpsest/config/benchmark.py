"""A benchmark: config/benchmarks/<benchmark>.yaml."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from palimpsest.config.science import Science
from palimpsest.lineage import check_task_name


class Benchmark(Science):
    """Tasks and the orders in which they are learnt; `pictures: blank` hides every picture."""

    cosmetic: ClassVar = {"title", "orders", "description"}
    description: str = ""
    fraction: float | None = Field(None, gt=0, lt=1)  # of the training examples; all if not given
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

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order that is named first."""
        return next(iter(self.orders.values()))
