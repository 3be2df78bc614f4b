"""One look for every figure. Colours are Okabe and Ito's, lines differ in style too."""

import matplotlib.pyplot as plt

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
    return plt.subplots(*args, layout="constrained", **kwargs)


def token_label(piece: str) -> str:
    """A token's text for a tick or a mark: spaces at its ends seen, line ends as one character, no mathtext."""
    text = piece.replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
    return ("·" if text.startswith(" ") else "") + text.strip() if text.strip() else "·" * max(1, len(text))
