"""The colours of a heat map for the page, in light and dark, and what is legible on each."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from palimpsest.report.figures.style import SCORES, SCORES_DARK, STEPS


def _ink_on(color: str) -> str:
    """Return black or white, whichever has the higher contrast (WCAG 2.2, contrast ratio)."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return "#000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#fff"


HEAT = {
    theme: [to_hex(ramp(k)) for k in range(STEPS)]
    for theme, ramp in {"light": SCORES, "dark": SCORES_DARK}.items()
}
ON_HEAT = {theme: [_ink_on(color) for color in colors] for theme, colors in HEAT.items()}
