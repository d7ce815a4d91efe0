"""What a cell costs as a job of its own, in a job array, and in a job for all cells of a stage.

    sudo env PYTHONPATH=tests/unit:tests/workflow:tests/slurm python benchmarks/fan_out.py

It starts the tests' Slurm cluster, trains a study of four short stages there once, and evaluates
its five stages (with the base) on three tasks in each of the three ways, one after the other. The
model is tiny, so that what is measured is what a job costs beside its work: the queue, Snakemake
twice, Python's imports, a model's load.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from cluster import Cluster
from studies import StudyOnCluster, change, copy_of, slurm_workspace, write

WAYS = {
    "a job a stage": ("stage", []),
    "a job a cell": ("cell", []),
    "a cell of a job array": ("cell", ["--slurm-array-jobs", "evaluate"]),
}


def main() -> None:
    """Print a table: jobs, their time for each cell, and how long Snakemake took."""
    with tempfile.TemporaryDirectory() as directory, Cluster(f"{directory}/slurm") as cluster:
        root = slurm_workspace(Path(directory).resolve() / "workspace")
        change(root, "methods/lora", training__epochs=1)
        write(root, "small", {"extends": "tiny", "title": "Small", "methods": ["replay"]})
        trained = StudyOnCluster(cluster, root)
        trained.succeed("train_all", "data_all", study="small")
        print(f"{'15 cells as':24}{'jobs':>6}{'job seconds a cell':>20}{'wall seconds':>14}")
        for way, (fan_out, options) in WAYS.items():
            study = StudyOnCluster(cluster, copy_of(root, root.with_name(way.replace(" ", "-"))))
            change(study.root, "tiny", evaluation__fan_out=fan_out)
            begun = time.monotonic()
            study.succeed("evaluate_all", *options, study="small")
            wall = time.monotonic() - begun
            rows = study.job_lines("Comment", "ElapsedRaw")
            seconds = [int(row[1]) for row in rows if row[0].startswith("rule_evaluate")]
            print(f"{way:24}{len(seconds):6}{sum(seconds) / 15:20.1f}{wall:14.0f}", flush=True)
            shutil.rmtree(study.root)


if __name__ == "__main__":
    sys.exit(main())
