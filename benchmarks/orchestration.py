"""What planning and running a study costs beside its work, in CPU time of one core.

The study of 1,000 experiments learns the demo's eight tasks in eight orders that share no stage, by
five methods and 25 seeds: 8,000 stages and 64,008 cells. It is planned as the local profile has it,
in a clone where nothing has been run. With one job for all cells of a stage (`fan_out: stage`)
these are 24,000 jobs; with one for each cell, 136,000, whose price a smaller study tells. The full
dry run is measured three times. What a job costs is told by a study in which a shell script stands
for the commands and only writes their files: the price has Snakemake's work from start to end in
it, and the script's, but no import of a command of ours, which stands beside it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import REPEATS, Claim, Cost, seconds
from palimpsest.files import write_json
from palimpsest.lineage import Stage
from palimpsest.study import RESULTS, identity, plan, stage_fingerprint
from workspace import REPOSITORY, write

TASKS = [
    "demo-choice", "demo-reading", "demo-digits", "demo-relations",
    "demo-answerable", "demo-grounding", "demo-counting", "demo-card",
]  # fmt: skip
METHODS = ["lora", "moelora", "replay", "ewc", "lwf"]
SNAKEMAKE = ("snakemake", "--profile", "profiles/local", "--cores", "2")
HEAVY = "import sys; from palimpsest.cli import main; sys.argv = {argv}\n"
HEAVY += "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
# What the commands of the rules leave behind, without their work.
COMMANDS = """#!/bin/sh
stage=$2
put() { mkdir -p "$1"; : > "$1/$2"; }
cells() {
    while [ "$1" != --tasks ]; do shift; done; shift
    for task; do
        case $task in --*) return ;; esac
        put "results/stages/$stage/cells/test/$task$below" "$file"
    done
}
case $1 in
    convert) put "results/data/$2" manifest.json; put "results/data/$2" gallery.parquet ;;
    chance) put "results/data/$2" chance.json ;;
    train) put "results/stages/$2/stage" stage.json ;;
    evaluate) below= file=predictions.parquet; cells "$@" ;;
    score) below=/metric file=scores.json; cells "$@" ;;
    report) put "results/reports/$2" index.html ;;
esac
"""


@dataclass(frozen=True)
class Run:
    """One run of a command: what it took, its most memory, and what it printed."""

    cost: Cost
    gigabytes: float
    text: str

    @property
    def jobs(self) -> int:
        """How many jobs Snakemake planned or ran."""
        return int(re.search(r"^total\s+(\d+)$", self.text, re.MULTILINE)[1])


def claims() -> list[Claim]:
    """Measure commands, dry runs, a rerun with nothing to do, and what a job costs."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        return [
            *_start_up(clone(root / "clone")),
            _nothing_to_do(clone(root / "demo")),
            *_planning(clone(root / "thousand")),
            _planning_by_cell(clone(root / "by-cell")),
            _jobs(clone(root / "jobs")),
        ]


def clone(path: Path) -> Path:
    """Make a directory as a clone has it, with the shipped studies, and return it."""
    path.mkdir()
    shutil.copy(REPOSITORY / "Snakefile", path)
    for name in ("config", "profiles", "rules"):
        shutil.copytree(REPOSITORY / name, path / name)
    for name in ("workflow", "demo"):
        (path / name).symlink_to(REPOSITORY / name)
    return path


def write_study(root: Path, seeds: int, fan_out: str) -> None:
    """Write the study `many`, of 40 experiments a seed; no two share a stage."""
    orders = {f"from-{task}": TASKS[n:] + TASKS[:n] for n, task in enumerate(TASKS)}
    write(root, "benchmarks/many", {"title": "Many", "orders": orders})
    study = {
        "title": "Many experiments",
        "benchmark": "many",
        "models": ["demo-llava"],
        "methods": METHODS,
        "orders": list(orders),
        "seeds": list(range(seeds)),
        "evaluation": {"fan_out": fan_out, "batch": 125},
    }
    write(root, "many", study)


def run(root: Path, *command: str) -> Run:
    """Run a command in a clone; it must succeed."""
    path = (
        f"{root / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    env = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY / "workflow")}
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, cwd=root, env=env, stdout=printed, stderr=printed)
        _, status, used = os.wait4(process.pid, 0)
        cost = Cost(time.perf_counter() - begun, used.ru_utime + used.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        text = printed.read()
    assert process.returncode == 0, text[-4000:]
    print(f"  {' '.join(command)[:60]}: CPU {cost.cpu:.2f} s", file=sys.stderr, flush=True)
    return Run(cost, used.ru_maxrss / 1e6, text)


def repeated(root: Path, *command: str, repeats: int = REPEATS) -> list[Run]:
    """Run a command once to warm the disk's cache, and then as often as asked."""
    return [run(root, *command) for _ in range(repeats + 1)][1:]


def _start_up(root: Path) -> list[Claim]:
    """Claim how long commands take that need no torch."""
    found = []
    for command in (("palimpsest", "--help"), ("palimpsest", "plan", "demo")):
        code = HEAVY.format(argv=list(command))
        loaded = run(root, sys.executable, "-c", code).text.split()[-1]
        costs = [one.cost for one in repeated(root, *command)]
        beside = f"torch is {'' if loaded == 'True' else 'not '}imported"
        found.append(seconds(f"`{' '.join(command)}`", costs, beside=beside))
    return found


def _nothing_to_do(root: Path) -> Claim:
    """Claim how long Snakemake takes to see that all of the demo is there."""
    pretend(root)
    made = run(root, *SNAKEMAKE)
    with chdir(root):
        for stage in plan("demo").trained:
            sign(stage)
    runs = repeated(root, *SNAKEMAKE)
    assert all("Nothing to be done" in one.text for one in runs)
    beside = f"{made.jobs} jobs, all done; the records of the stages are checked"
    return seconds("no-op rerun of the demo", [one.cost for one in runs], goal="≤ 5", beside=beside)


def _planning(root: Path) -> list[Claim]:
    """Claim the time and memory of planning 1,000 experiments."""
    write_study(root, seeds=25, fan_out="stage")
    planned = repeated(root, "palimpsest", "plan", "many", repeats=3)
    sizes = re.findall(r"^(?:stages|cells) +(\d+)", planned[0].text, re.MULTILINE)
    dry = [run(root, *SNAKEMAKE, "--config", "study=many", "--dry-run") for _ in range(3)]
    size = "{} stages and {} cells".format(*sizes)
    return [
        *_time_and_memory("`palimpsest plan` of 1,000 experiments", planned, size),
        *_time_and_memory("`snakemake -n` of the same", dry, f"{size}, {dry[0].jobs} jobs"),
    ]


def _time_and_memory(what: str, runs: list[Run], beside: str) -> list[Claim]:
    most = [one.gigabytes for one in runs]
    memory = Claim(f"{what}: memory", median(most), min(most), max(most), "GB", "≤ 1.5", beside)
    return [seconds(what, [one.cost for one in runs], goal="≤ 60", beside=beside), memory]


def _planning_by_cell(root: Path) -> Claim:
    """Claim what a planned job takes where each cell has one to answer and one to score."""
    write_study(root, seeds=1, fan_out="cell")
    dry = repeated(root, *SNAKEMAKE, "--config", "study=many", "--dry-run", repeats=2)
    each = [1000 * one.cost.cpu / one.jobs for one in dry]
    thousand = 25 * median(one.cost.cpu for one in dry)
    beside = (
        f"{dry[0].jobs} jobs of 40 experiments; 1,000 would take {thousand:.0f} s: "
        "large studies want `fan_out: stage`"
    )
    what = "`snakemake -n`, a job with `fan_out: cell`"
    return Claim(what, median(each), min(each), max(each), "ms CPU", "", beside)


def _jobs(root: Path) -> Claim:
    """Claim what Snakemake spends on a job, from its start to its end."""
    write_study(root, seeds=1, fan_out="stage")
    pretend(root)
    command = (*SNAKEMAKE, "--config", "study=many")
    runs = []
    for _ in range(2):
        runs.append(run(root, *command))
        shutil.rmtree(root / "results")
        shutil.rmtree(root / ".snakemake")
    each = [1000 * one.cost.cpu / one.jobs for one in runs]
    script = (
        1000 * run(root, "sh", "-c", "for n in $(seq 100); do palimpsest train a; done").cost.cpu
    )
    beside = f"{runs[0].jobs} jobs, up to 40 of them ready; {script / 100:.1f} ms is the script's"
    what = "Snakemake beside a job's work"
    return Claim(what, median(each), min(each), max(each), "ms CPU", "", beside)


def pretend(root: Path) -> None:
    """Put a script in the place of the commands: it writes what they would, with nothing in it."""
    script = root / "bin" / "palimpsest"
    script.parent.mkdir()
    script.write_text(COMMANDS)
    script.chmod(0o755)


def sign(stage: Stage) -> None:
    """Write into a stage's record whose it is, as if it had been there from the start."""
    record = stage.directory(RESULTS) / "stage.json"
    written = record.stat()
    write_json(record, {"fingerprint": stage_fingerprint(stage), "identity": identity(stage)})
    os.utime(record, ns=(written.st_atime_ns, written.st_mtime_ns))
