"""What a judge has replied, kept for ever: no prompt is asked twice.

    results/judgements/<judge>/<task>.jsonl    {"key": …, "reply": …}, a line each

A file is only ever appended to, and is shared by all cells of a task.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path


class Judgements:
    """The replies of a judge on one task, by prompt. Any number of jobs read and append at once.

    A line that a killed job left half written is passed over, and counted in `broken`. The first
    reply to a prompt counts, so that all jobs see the same.
    """

    def __init__(self, path: Path, judge_fingerprint: str) -> None:
        self.path, self.judge_fingerprint = path, judge_fingerprint
        self.broken = 0

    def key(self, prompt: str) -> str:
        """Return the SHA-256, in hex, of the judge's fingerprint and a prompt."""
        return hashlib.sha256(f"{self.judge_fingerprint}\n{prompt}".encode()).hexdigest()

    def read(self, prompts: list[str]) -> dict[str, str]:
        """Return the replies that are known to some prompts."""
        self.broken = 0
        replies: dict[str, str] = {}
        if self.path.exists():
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                for line in file:
                    self._take(line, replies)
        keys = {prompt: self.key(prompt) for prompt in prompts}
        return {prompt: replies[key] for prompt, key in keys.items() if key in replies}

    def append(self, prompt: str, reply: str) -> None:
        """Add the reply to a prompt; it outlives this process, however that ends."""
        line = json.dumps({"key": self.key(prompt), "reply": reply}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode())
            file.flush()

    def _take(self, line: bytes, replies: dict[str, str]) -> None:
        try:
            row = json.loads(line)
            replies.setdefault(row["key"], row["reply"])
        except (ValueError, KeyError, TypeError):
            self.broken += 1
