"""What every benchmark here shares: ways of doing a thing, measured side by side, and claims.

    python benchmarks/bench.py               every benchmark of a CPU, and one table of all claims
    python benchmarks/bench.py data training    only these

A benchmark is a module with a function `claims()`. It runs in a process of its own, and its claims
are written to `results/<benchmark>.json`; the table of all is `results/README.md`.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ON_CPU = ("training", "evaluation", "data", "orchestration", "memory", "intervals")
REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """What one run took, in seconds: of the wall's clock, and of all cores, children included."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Claim:
    """One number that may be told to others, and what it must be compared with."""

    what: str
    value: float
    low: float  # least and largest of the repeats
    high: float
    unit: str  # "×", "s", "GB", …
    goal: str  # such as "≥ 1.5", or "" where none was set
    beside: str  # what shows that both sides did the same, and what else one should know

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.value >= float(bound) if sign == "≥" else self.value <= float(bound)


def in_own_process(file: str, *arguments: Any) -> dict[str, Any]:
    """Run a file of this folder; return what the last line that it prints says, in JSON."""
    command = [sys.executable, file, *map(str, arguments)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def cost_of(work: Callable[[], Any]) -> tuple[Cost, Any]:
    """Do a piece of work; return what it took, and what it gave."""
    gc.collect()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    given = work()
    return Cost(time.perf_counter() - wall, _cpu_seconds() - cpu), given


def side_by_side(
    ways: Mapping[str, Callable[[], Any]], repeats: int = REPEATS, warm_up: bool = True
) -> tuple[dict[str, list[Cost]], dict[str, Any]]:
    """Do the same work in several ways, all of them in turn, so that noise meets them alike.

    Returns the costs of each way, one a repeat, and what its last run gave. A first round is not
    counted, if `warm_up`.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    given = {}
    for turn in range(-1 if warm_up else 0, repeats):
        for name, work in ways.items():
            cost, given[name] = cost_of(work)
            if turn >= 0:
                costs[name].append(cost)
            print(f"  {name}: {cost.wall:.2f} s, CPU {cost.cpu:.2f} s", file=sys.stderr, flush=True)
    return costs, given


def ratio(
    what: str, ours: list[Cost], theirs: list[Cost], *, goal: str = "", beside: str = ""
) -> Claim:
    """Claim how many times as long theirs takes as ours: CPU time, wall time told beside it."""
    by_cpu = [b.cpu / a.cpu for a, b in zip(ours, theirs, strict=True)]
    by_wall = [b.wall / a.wall for a, b in zip(ours, theirs, strict=True)]
    beside = "; ".join(filter(None, [f"{median(by_wall):.2f} × by the wall's clock", beside]))
    return Claim(what, median(by_cpu), min(by_cpu), max(by_cpu), "×", goal, beside)


def seconds(what: str, costs: list[Cost], *, goal: str = "", beside: str = "") -> Claim:
    """Claim how much CPU time a piece of work takes, wall time told beside it."""
    cpu = [cost.cpu for cost in costs]
    walls = f"{median(cost.wall for cost in costs):.2f} s by the wall's clock"
    beside = "; ".join(filter(None, [walls, beside]))
    return Claim(what, median(cpu), min(cpu), max(cpu), "s CPU", goal, beside)


def table(claims: list[Claim]) -> str:
    """Return claims as a table of Markdown."""
    lines = ["| what | measured | least – most | goal | | beside |", "|---|---:|---:|---:|---|---|"]
    for claim in claims:
        met = {True: "met", False: "**missed**", None: ""}[claim.holds]
        lines.append(
            f"| {claim.what} | {claim.value:.3g} {claim.unit} | {claim.low:.3g} – {claim.high:.3g} "
            f"| {claim.goal} | {met} | {claim.beside} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """Return what this was measured on, in a line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    return next(row.partition(":")[2].strip() for row in rows if row.startswith("model name"))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _run(name: str) -> None:
    """Run one benchmark in this process, and write its claims."""
    claims = [asdict(claim) for claim in import_module(name).claims()]
    found = {"machine": machine(), "claims": claims}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    """Run benchmarks, each in a process of its own; print and write the table."""
    if sys.argv[1:2] == ["--one"]:
        _run(sys.argv[2])
        return 0
    names = sys.argv[1:] or ON_CPU
    env = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent / 'tests/unit'}"}
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, __file__, "--one", name], env=env, check=True)
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        claims = [Claim(**claim) for claim in found["claims"]]
        parts.append(f"## {path.stem}\n\n{found['machine']}\n\n{table(claims)}\n")
        if path.stem in names:
            print(f"\n{parts[-1]}")
    (RESULTS / "README.md").write_text("# What was measured last\n\n" + "\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
