"""A study with all that its name implies: its stages and cells, what they are known by, how scored.

Reads configuration, and of the results only the records of stages. Imports no torch.
"""

from palimpsest.study.answers import Manner, manner_of, scorer
from palimpsest.study.plans import Experiment, Plan, plan
from palimpsest.study.stages import (
    RESULTS,
    check_record,
    history,
    identity,
    initial_of,
    method_of,
    refuse_foreign_stages,
    stage_fingerprint,
)
from palimpsest.study.vocabulary import described, fetched

__all__ = [
    "RESULTS", "Experiment", "Manner", "Plan", "check_record", "described", "fetched", "history",
    "identity", "initial_of", "manner_of", "method_of", "plan", "refuse_foreign_stages", "scorer",
    "stage_fingerprint",
]  # fmt: skip
