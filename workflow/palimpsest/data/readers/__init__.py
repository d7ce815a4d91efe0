"""One publisher's format a file, found by name.

A reader's module has

    splits(source, root) -> the names of the splits
    files(source) -> the publisher's files besides pictures, by split or role, below `root`
    read(source, split, root) -> an Example or a Rejected for every record, in order

and may have

    NEEDED, the splits that there must be; train and test if it does not say so
    survey(source, root) -> a Finding for each thing that it looks for
    notes(source, root) -> what else the manifest says of how the records were read
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

S = TypeVar("S", bound=BaseModel)


def typed(kind: type[S], source: dict[str, Any], reader: str) -> S:
    """Return a task's source with its types; ValueError names the reader and what is wrong."""
    try:
        return kind.model_validate(source)
    except ValidationError as errors:
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors.errors()]
        raise ValueError(f"reader {reader!r}: source: {'; '.join(found)}") from None
