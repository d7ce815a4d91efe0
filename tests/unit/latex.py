"""LaTeX as an author runs it: what its log complains of."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

COMPLAINTS = re.compile(
    r"^(?:Overfull|LaTeX.* Warning|Package.* Warning|Missing char|Warning--).*", re.MULTILINE
)


def complaints(document: Path) -> list[str]:
    """Compile a document with its bibliography; return what is too wide, missing or undefined.

    Skips the test where there is no LaTeX.
    """

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=document.parent, stdout=subprocess.PIPE)
        text = done.stdout.decode(errors="replace")
        assert done.returncode == 0, text
        return text

    if not shutil.which("pdflatex"):
        pytest.skip("tests/install.sh installs LaTeX")
    name = document.stem
    pdflatex = ("pdflatex", "-interaction=nonstopmode", "-halt-on-error", name)
    run(*pdflatex)
    said = run("bibtex", name)
    run(*pdflatex)
    run(*pdflatex)
    log = document.with_suffix(".log").read_text(errors="replace")
    return COMPLAINTS.findall(said + log)
