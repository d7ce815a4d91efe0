"""A JSON array or object of any size, read element by element."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 2**20  # characters
LONGEST = 2**24  # characters of one element
WHITE = " \t\n\r"
NUMBER = ".eE"  # what follows a number that goes on in the next chunk


def elements(path: Path, key: str | None = None) -> Iterator[Any]:
    """Yield the elements of the array that a file holds; memory does not grow with the file.

    `key`: the file holds an object, and the array is the value of this key in it.

    ValueError names the file, the element (from 1) and the character where the JSON breaks off or
    is not valid. What stood before has been yielded by then, but whoever reads must not go on with
    it: how much is missing is not known.
    """
    return _read(path, "array" if key is None else "object", lambda text: text.elements(key))


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the members of the object that a file holds, as `elements` does."""
    return _read(path, "object", _Text.members)


def _read(path: Path, what: str, values: Callable[[_Text], Iterator[Any]]) -> Iterator[Any]:
    if not path.exists():
        raise ValueError(f"{path}: file is missing")
    with path.open(encoding="utf-8") as file:
        text = _Text(file)
        try:
            yield from values(text)
            if text.peek():
                raise text.broken(f"more text after the {what}'s end")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: damaged or truncated at element {text.number or 1}: {error}; "
                "fetch it again"
            ) from None


class _Broken(ValueError):
    """Text that is no such JSON, and where."""


class _Text:
    """What of a file is read and not used yet."""

    def __init__(self, file) -> None:
        self.file, self.rest, self.position, self.used = file, "", 0, 0
        self.number = 0  # of the element that is read
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
                whole = end < len(self.rest) and self.rest[end] not in NUMBER
                if whole or len(self.rest) - self.position > LONGEST or not self.more():
                    self.position = end
                    return value

    def elements(self, key: str | None) -> Iterator[Any]:
        """Yield the elements of an array, or of the array that an object has by a key."""
        if key is None:
            for _ in self.items("[", "]", "array"):
                self.number += 1
                yield self.value()
            return
        found = False
        for _ in self.items("{", "}", "object"):
            if self.name() == key:
                found = True
                yield from self.elements(None)
            else:
                self.value()
        if not found:
            raise self.broken(f"the object has no {key!r}")

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield the members of an object."""
        for _ in self.items("{", "}", "object"):
            self.number += 1
            yield self.name(), self.value()

    def items(self, first: str, last: str, what: str) -> Iterator[None]:
        """Stop before each item, which the caller then reads, of an array or an object."""
        if self.take() != first:
            raise self.broken(f"expected {first!r}: the file holds no JSON {what}")
        if self.peek() == last:
            self.take()
            return
        separator = ","
        while separator == ",":
            yield
            separator = self.take()
        if separator != last:
            raise self.broken(f"expected ',' or {last!r}")

    def name(self) -> str:
        """Read the name of a member, and the colon."""
        name = self.value()
        if not isinstance(name, str) or self.take() != ":":
            raise self.broken("expected a name and ':'")
        return name

    def broken(self, message: str, position: int | None = None) -> _Broken:
        where = self.used + (self.position if position is None else position)
        return _Broken(f"{message} (character {where})")
