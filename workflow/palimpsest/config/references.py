"""The works that configs cite: config/references.bib."""

from __future__ import annotations

import re
from pathlib import Path

FILE = "references.bib"
ENTRY = re.compile(r"^@\w+\{([^,\s]+),$.*?^\}$", re.MULTILINE | re.DOTALL)


def read_references(config: Path) -> dict[str, str]:
    """Return the entries of a configuration's references.bib by their keys, as they are written.

    An entry begins with "@type{key," at the start of a line, and ends with a line "}". A
    configuration without the file has none.
    """
    path = config / FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {entry[1]: entry[0] for entry in ENTRY.finditer(text)}
