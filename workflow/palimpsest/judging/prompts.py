"""What a judge reads: the question, the right answer, and the answer that it is to rate.

The frame is that of CoIN's create_prompt.py and eval_GenealKnowledge.py. The rules say what CoIN's
say, in words of our own.
"""

from __future__ import annotations

from palimpsest.data.example import Example

SYSTEM = "You are a helpful assistant."
RATE = (
    "Compare the assistant's answer with the ground truth answer, both shown above, and say how "
    "accurate it is. Give it one overall score from 0 to 10; a better answer has a higher score.\n"
    "Reply with one line that holds this number and nothing else."
)
BOXES = (
    "The question is about a place in a picture, which you cannot see. Places are told as boxes "
    "(x1, y1, x2, y2) with numbers from 0 to 1: x1 and y1 are the left and the upper edge, x2 and "
    "y2 the right and the lower one.\n"
)


def prompt(example: Example, prediction: str, protocol: str) -> str:
    """Return what a judge is asked about a prediction; the example needs no picture.

    The last line of the question, which says in what form to answer, is left out, but not where a
    box is asked for. A question of one line is nothing without it: as published it is left out
    nevertheless.
    """
    turn = example.turns[-1]
    question, rule = turn.question, RATE
    if example.box is not None:
        rule = BOXES + RATE
    elif "\n" in question or protocol == "as-published":
        question = question.rpartition("\n")[0]
    text = (
        f"[Context]\n[Question]\n{question}\n\n"
        f"[Ground truth answer]\n{turn.answer}\n\n[End of ground truth answer]\n\n"
        f"[Assistant]\n{prediction}\n\n[End of Assistant]\n\n"
        f"[System]\n{rule}\n\n"
    )
    return text.replace("<image>", "").strip()


def messages(prompt: str) -> list[dict[str, str]]:
    """Return the conversation that a prompt is sent in."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
