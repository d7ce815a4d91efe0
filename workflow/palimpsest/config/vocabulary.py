"""The concepts of keywords: config/concepts/<name>.yaml."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field

from palimpsest.methods.settings import Settings


class Described(Settings):
    """What is to be seen in pictures of a keyword, and what is asked about them."""

    image: tuple[str, ...] = Field(min_length=1)
    text: tuple[str, ...] = Field(min_length=1)


class Files(Settings):
    """Where concepts are, as CORE releases them: files of results/downloads/<download>/."""

    image: str
    text: str

    @property
    def downloads(self) -> tuple[str, ...]:
        """What must have been fetched."""
        return tuple(dict.fromkeys(Path(path).parent.name for path in (self.image, self.text)))


class Vocabulary(Settings):
    """Concepts by keyword, or the `files` that have them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Described]
    files: Files | None = None
