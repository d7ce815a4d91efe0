"""By what the scores of a judge are known. Nothing here imports torch."""

from __future__ import annotations

from palimpsest.config import Judge
from palimpsest.judging import parsing
from palimpsest.metrics import core_refusal, refusal

TEMPLATES = "1"  # of judging/context.py; raised when a change alters a score
RULES = {"as-published": core_refusal, "corrected": refusal}  # by which an answer refuses


def of_work(judge: Judge) -> str:
    """Return the version of what a judge does: of parsing a rating, or of comparing templates."""
    if judge.kind != "templates":
        return parsing.VERSION
    return f"{TEMPLATES}.{RULES[judge.protocol].VERSION.partition('/')[0]}"


def version(judge: Judge) -> str:
    """Return the version of a judge's scores: of its work, of its settings, the protocol."""
    return f"{of_work(judge)}-{judge.fingerprint[:8]}/{judge.protocol}"
