"""A JSON array of any size, read element by element."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 2**20  # characters
LONGEST = 2**24  # characters of one element
WHITE = " \t\n\r"


def elements(path: Path) -> Iterator[Any]:
    """Yield the elements of the array that a file holds; memory does not grow with the file.

    ValueError names the file, the element (from 1) and the character where the JSON breaks off or
    is not valid. What stood before has been yielded by then, but whoever reads must not go on with
    it: how much is missing is not known.
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            text = _Text(file)
            if text.take() != "[":
                raise text.broken("expected '[': the file holds no JSON array")
            if text.peek() == "]":
                text.take()
            else:
                separator = ","
                while separator == ",":
                    number += 1
                    yield text.value()
                    separator = text.take()
                if separator != "]":
                    raise text.broken("expected ',' or ']'")
            if text.peek():
                raise text.broken("more text after the array's end")
    except FileNotFoundError:
        raise ValueError(f"{path}: file is missing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: damaged or truncated at element {number or 1}: {error}; fetch it again"
        ) from None


class _Broken(ValueError):
    """Text that is no JSON array, and where."""


class _Text:
    """What of a file is read and not used yet."""

    def __init__(self, file) -> None:
        self.file, self.rest, self.position, self.used = file, "", 0, 0
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> bool:
        """Read a chunk on; return whether there was one."""
        chunk = self.file.read(CHUNK)
        self.used += self.position
        self.rest, self.position = self.rest[self.position :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """Return the next character that is no white space, or none at the file's end."""
        while True:
            while self.position < len(self.rest):
                if self.rest[self.position] not in WHITE:
                    return self.rest[self.position]
                self.position += 1
            if not self.more():
                return ""

    def take(self) -> str:
        """Return the next character that is no white space and go past it."""
        character = self.peek()
        self.position += len(character)
        return character

    def value(self) -> Any:
        """Decode the next value; one that may go on in the next chunk is decoded again."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.rest, self.position)
            except json.JSONDecodeError as error:
                broken = self.broken(error.msg, error.pos)
                if len(self.rest) - self.position > LONGEST or not self.more():
                    raise broken from None
            else:
                if end < len(self.rest) or not self.more():
                    self.position = end
                    return value

    def broken(self, message: str, position: int | None = None) -> _Broken:
        where = self.used + (self.position if position is None else position)
        return _Broken(f"{message} (character {where})")
