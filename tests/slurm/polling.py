"""Snakemake's command line, asking Slurm for its jobs once a second. For tests only.

    python tests/slurm/polling.py <arguments of snakemake>

After each question in which no job had finished, the Slurm plugin (2.8) waits ten seconds more
before the next one, up to three minutes, and has no option against it. That is kind to the
controller of a large cluster; a test of jobs that take seconds would wait for nothing else.
"""

from __future__ import annotations

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

SECONDS = 1.0

# The plugin sets the property to its next interval, and sleeps for what it then reads.
Executor.next_seconds_between_status_checks = property(
    fget=lambda executor: SECONDS, fset=lambda executor, seconds: None
)

if __name__ == "__main__":
    sys.exit(main())
