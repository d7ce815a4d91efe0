"""Pictures of test examples, small enough for a page that holds dozens of them."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIDE = 320  # pixels; twice what the page shows


def data_uri(image: bytes) -> str:
    """Return an encoded picture as a data URI; one that is larger than SIDE is made smaller."""
    with Image.open(io.BytesIO(image)) as picture:
        if max(picture.size) > SIDE:
            small = picture.convert("RGB")
            small.thumbnail((SIDE, SIDE))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80)
            image = out.getvalue()
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
