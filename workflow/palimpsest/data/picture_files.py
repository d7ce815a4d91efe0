"""Pictures by the names that released records give them."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

from PIL import Image


class Bad(Exception):
    """Why a record is no example."""


class Pictures:
    """Folders that stand for the prefixes of released names, each a download of its own.

    Names are relative to the root `cl_dataset` of the released code, with or without saying so.
    """

    def __init__(self, folders: dict[str, str], root: Path) -> None:
        ordered = sorted(folders, key=len, reverse=True)  # the longest prefix counts
        self.folders = {PurePosixPath(name): root / folders[name] for name in ordered}

    def read(self, name: str | None, text: str) -> tuple[bytes | None, tuple[int, int] | None]:
        """Return a picture's encoded bytes and its width and height; none if there is none."""
        if name is None:
            if "<image>" in text:
                raise Bad("the text has a picture, and the record names none")
            return None, None
        try:
            image = self.path(name).read_bytes()
        except (OSError, ValueError) as error:
            raise Bad(f"picture {name!r} cannot be read: {error}") from None
        try:
            with Image.open(io.BytesIO(image)) as picture:
                return image, picture.size
        except Exception as error:  # damaged bytes make Pillow raise almost anything
            raise Bad(f"picture {name!r} does not decode: {type(error).__name__}") from None

    def path(self, name: str) -> Path:
        """Return where a picture is; a doubled extension is taken as one if need be."""
        plain = PurePosixPath(name.strip().removeprefix("./").removeprefix("cl_dataset/"))
        if plain.is_absolute() or ".." in plain.parts:
            raise Bad(f"picture {name!r} is not below the data set")
        folder = next((f for f in self.folders if plain.is_relative_to(f)), None)
        if folder is None:
            known = ", ".join(map(str, self.folders))
            raise Bad(f"picture {name!r} is in none of the folders {known}")
        path = self.folders[folder] / plain.relative_to(folder)
        single = path.with_suffix("")
        if path.exists():
            return path
        if path.suffix and path.suffix == single.suffix and single.exists():
            return single
        raise Bad(f"there is no picture {name!r}: {path} is missing")
