"""The figures of several devices: what lies where, and what a token takes."""

import matplotlib.pyplot as plt
import numpy as np

from ..colours import BLUE, ORANGE
from .style import figure, styled


@styled
def placement(arrays: dict):
    """One picture to each array by title, [rows, columns] or [rows]: the colour of an element is the device that holds
    it, white what every device holds whole."""
    fig, axes = figure(1, len(arrays), figsize=(12, 2.7))
    devices = sorted({device.id for x in arrays.values() for device in x.sharding.device_set})
    colours = dict(zip(devices, plt.cm.viridis(np.linspace(0, 1, len(devices))), strict=True))
    for ax, (title, x) in zip(axes, arrays.items(), strict=True):
        picture = np.ones((x.shape[0], x.shape[-1], 4))
        for shard in () if x.is_fully_replicated else x.addressable_shards:
            picture[shard.index] = colours[shard.device.id]
        ax.imshow(picture, aspect="auto", interpolation="nearest")
        ax.set(xticks=[], yticks=[], xlabel=" x ".join(map(str, x.shape)))
        ax.set_title(title, fontsize=9)
        ax.spines[:].set_visible(True)
    for device, colour in colours.items():
        axes[0].plot([], [], "s", color=colour, label=f"device {device}")
    axes[0].plot([], [], "s", color="black", mfc="white", label="whole on every device")
    fig.legend(loc="outside lower center", ncols=len(colours) + 1)
    return axes


@styled
def token_times(published: dict, predicted: dict, parts: dict, left_label: str, right_label: str, used: dict):
    """Left, milliseconds a token against the number of devices, from {name: {devices: milliseconds}}, hollow what the
    prediction was made from, {name: devices}; right, bars of what is predicted, from {name: (reading, all else)}."""
    fig, (left, right) = figure(1, 2, figsize=(11, 3.6))
    for i, (name, times) in enumerate(published.items()):
        label = lambda text, first=i == 0: text if first else None
        counts, ms = list(times), list(times.values())
        left.plot(counts, ms, "o", color="black", label=label("published"))
        fitted = [n for n in counts if n in used.get(name, ())]
        hollow = dict(color="black", mfc="white", zorder=3, label=label("used to predict"))
        left.plot(fitted, [times[n] for n in fitted], "o", **hollow)
        left.plot(counts, [predicted[name][n] for n in counts], "--", color=BLUE, label=label("predicted"))
        left.annotate(name, (counts[-1], ms[-1]), xytext=(8, 0), textcoords="offset points", va="center")
    ticks, devices = [3, 5, 10, 20, 50], sorted({n for times in published.values() for n in times})
    left.set(xscale="log", yscale="log", xlabel=left_label, ylabel="ms a token", ylim=(2.5, 60))
    left.set_xticks(devices, devices)
    left.set_yticks(ticks, ticks)
    left.minorticks_off()
    left.set_xlim(devices[0] / 1.1, devices[-1] * 1.8)
    left.legend()
    reading, rest = np.array(list(parts.values())).T
    right.barh(list(parts), reading, color=BLUE, label="reading the weights")
    bars = right.barh(
        list(parts), rest, left=reading, color=ORANGE, hatch="//", label="all-reduces and all around them"
    )
    right.bar_label(bars, [f"{total:.1f} ms" for total in reading + rest], padding=4)
    right.set(xlabel=right_label, xlim=(0, 1.2 * (reading + rest).max()))
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.legend()
    return left, right
