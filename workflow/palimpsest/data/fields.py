"""What of a released record is read, or why it cannot be."""

from __future__ import annotations

from typing import Any

from palimpsest.data.picture_files import Bad


def mapping(record: Any) -> dict:
    """Return the record; Bad if it is no object."""
    if not isinstance(record, dict):
        raise Bad(f"the record is no object but {type(record).__name__}")
    return record


def listing(record: dict, key: str) -> list:
    """Return a list of a record; Bad if it is missing or none."""
    if not isinstance(value := record.get(key), list):
        raise Bad(f"{key!r} is no list but {type(value).__name__}")
    return value


def optional(record: dict, key: str) -> str | None:
    """Return a text of a record, or None if it has none."""
    return None if record.get(key) is None else string(record, key)


def string(record: dict, key: str) -> str:
    """Return a text of a record, or a whole number as text; Bad if it is missing or empty."""
    return spoken(record.get(key), key)


def spoken(value: Any, name: str) -> str:
    """Return a text, or a whole number as text; Bad names what has neither, or an empty text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise Bad(f"there is no {name!r}" if value in (None, "") else f"{name!r} is {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Bad(f"{name!r} holds half a surrogate pair: {value!r:.80}") from None
    return value
