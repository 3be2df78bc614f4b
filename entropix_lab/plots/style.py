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
