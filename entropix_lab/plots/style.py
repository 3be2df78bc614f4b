"""One look for every figure. Colours are Okabe and Ito's, lines differ in style too."""

from functools import partial
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

STYLE = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}

styled = plt.rc_context(STYLE)


def figure(*args, **kwargs):
    """plt.subplots. As a notebook keeps it, the picture has a palette and a third of the bytes; a file that is saved is
    matplotlib's own."""
    fig, axes = plt.subplots(*args, layout="constrained", **kwargs)
    if hasattr(fig.canvas, "buffer_rgba"):  # not that of a backend for vectors
        fig.canvas.print_png = partial(_png, fig.canvas, fig.canvas.print_png)
    return fig, axes


def _png(canvas, print_png, file, **options):
    if not isinstance(file, BytesIO):  # IPython asks for one
        return print_png(file, **{name: x for name, x in options.items() if name in ("metadata", "pil_kwargs")})
    canvas.draw()
    with_palette(Image.fromarray(np.asarray(canvas.buffer_rgba()))).save(file, format="png", optimize=True)


def with_palette(picture):
    """An image of 256 colours."""
    return picture.convert("RGB").quantize(256)


def token_label(piece: str) -> str:
    """A token's text for a tick or a mark: spaces at its ends seen, line ends as one character, no mathtext."""
    text = piece.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
    return ("·" if text.startswith(" ") else "") + text.strip() if text.strip() else "·" * max(1, len(text))
