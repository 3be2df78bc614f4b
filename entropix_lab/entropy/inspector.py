"""The page that shows a Trace: its text, whose tokens can be explored where scripts run, and are coloured where not.

The page is in page/: inspector.html with inspector.css and inspector.js in it; saved.html is what stands around one in
a file. Here the data of a Trace is made small, and put in.
"""

import base64
import html
import json
import re
from importlib.resources import files

import numpy as np

from ..colours import COLOURS
from ..sampling import NAMES

FULL = {"entropy": 5.0, "surprisal": 8.0, "varentropy": 10.0}  # nats and nats^2 at which a ground is full
SHOWN = 400  # tokens that a notebook shows of a longer trace


def token_html(trace, forks: dict | None = None, note: str = "") -> str:
    """The inspector of a trace, HTML that needs nothing else: each token of the text stands on a ground that is the
    stronger the larger its entropy is (full at 5 nats).

    Pointing at a token shows its alternatives and figures; a click pins it, and shows its place in the plane of entropy
    and varentropy, and its layers and its attention where the trace has them. Where no script runs, the coloured text
    stays, with the figures on hovering. The ground is translucent, so that the text keeps the page's own colour and is
    readable on a light and on a dark page. What a sampler reported as its branch or policy colours a line below.
    forks: {position: Fork} of a Branched; note: a line of text below.
    """
    data = _data(trace) | {
        "shade": "entropy",
        "shades": {name: {"values": _rounded(getattr(trace, name), 4), "full": full} for name, full in FULL.items()},
        "forks": {
            at: {"texts": f.texts, "scores": _rounded(f.scores, 4), "chosen": f.chosen}
            for at, f in (forks or {}).items()
        },
    }
    # inside a script nothing but these could end it, or begin a comment
    inside = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    inside = inside.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return _filled(
        "inspector.html",
        css=_page("inspector.css"),
        js=_page("inspector.js"),
        prompt="".join(f"<span>{_text(piece)}</span>" for piece in trace.prompt_pieces or (trace.prompt,)),
        tokens=_spans(trace),
        legend=_legend(trace),
        note=html.escape(note),
        data=inside,
    )


def notebook_html(trace, note: str = "", **options) -> str:
    """token_html of the first 400 tokens: a long trace would fill a notebook's file."""
    more = f"the first {SHOWN} of {len(trace)} tokens; a slice shows others" if len(trace) > SHOWN else ""
    return token_html(trace[:SHOWN], note=". ".join(filter(None, (note, more))), **options)


def plain_html(prompt, text, note: str) -> str:
    """A text without a trace: what was given is pale, what was generated bold, note a small line below."""
    return (
        '<div style="white-space:pre-wrap;line-height:1.5;max-width:60em">'
        f'<span style="opacity:.55">{html.escape(prompt)}</span><b>{html.escape(text)}</b></div>'
        f"<small>{note}</small>"
    )


def saved_page(trace, title: str) -> str:
    """The inspector of a trace as a whole page."""
    return _filled("saved.html", title=html.escape(title), inspector=token_html(trace))


def _page(name):
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8").strip()


def _filled(name, **parts):
    """A template with a part in the place of each "<!-- name -->"; what a part says is not looked at again."""
    return re.sub(r"<!-- (\w+) -->", lambda found: parts[found[1]], _page(name))


def _text(piece):
    return html.escape(piece).replace("\n", "⏎\n")


def _spans(trace):
    kind, taken = trace.taken
    shares = np.clip(np.nan_to_num(np.asarray(trace.entropy, float) / FULL["entropy"]), 0, 1)
    spans = []
    for i, (piece, share) in enumerate(zip(trace.pieces, shares, strict=True)):
        title = f"entropy {trace.entropy[i]:.2f} nats, varentropy {trace.varentropy[i]:.2f} nats², "
        title += f"p {trace.probability[i]:.3g}, rank {trace.rank[i]}" + (f", {NAMES[kind][taken[i]]}" if kind else "")
        style = f"background:rgba(230,159,0,{0.65 * share:.2f})"
        style += f";border-bottom:3px solid {COLOURS[taken[i]]}" if kind else ""
        spans.append(f'<span style="{style}" title="{title}">{_text(piece)}</span>')
    return "".join(spans)


def _legend(trace):
    kind, taken = trace.taken
    line = f"ground: entropy, full from {FULL['entropy']:g} on"
    for i in np.unique(taken) if kind else ():
        style = f"border-bottom:3px solid {COLOURS[i]}"
        line += f' <span style="{style}">{NAMES[kind][i]}</span> {(taken == i).sum()}'
    return line


def _data(trace):
    """What the script reads: numbers to a few digits, words once and then by their number, attention packed."""
    kind, taken = trace.taken
    kinds = taken is not None and {"names": NAMES[kind], "colours": COLOURS, "of": taken.tolist()}
    flat = {name: _rounded(x, 3) for name, x in trace.info.items() if np.ndim(x) == 1 and name != kind}
    ids = np.unique(np.concatenate([x.ravel() for x in (trace.alternatives, trace.lens_tokens) if x is not None]))
    number = lambda x: np.searchsorted(ids, x).tolist()
    data = {name: _rounded(getattr(trace, name), 4) for name in ("entropy", "varentropy", "surprisal", "probability")}
    data |= {"pieces": trace.pieces, "prompt": trace.prompt_pieces, "live": int(trace.live[0]) if len(trace) else 0}
    data |= {"rank": trace.rank.tolist(), "info": flat, "taken": kinds or None, "thresholds": trace.thresholds}
    data["words"] = [trace.words[int(token)] for token in ids]
    data["alternatives"] = number(trace.alternatives)
    data["alternative_probabilities"] = _rounded(trace.alternative_probabilities, 4)
    if trace.lens_tokens is not None:
        data["lens"] = {
            "entropy": _rounded(trace.lens_entropy, 3),
            "tokens": number(trace.lens_tokens),
            "probabilities": _rounded(trace.lens_probabilities, 3),
            "rank": trace.lens_rank.tolist(),
        }
    if trace.attention_sources is not None and (np.diff(trace.live) == 1).all():
        data["attention"] = _packed(trace.attention_sources, trace.attention_weights)
    return data


def _rounded(x, digits):
    """Nested lists of x with so many significant digits; null for what is not finite."""
    if isinstance(x, list | tuple) or np.ndim(x):
        return [_rounded(part, digits) for part in (x.tolist() if hasattr(x, "tolist") else x)]
    return (int(x) if isinstance(x, int) else float(f"{x:.{digits}g}")) if np.isfinite(x) else None


def _packed(slots, weights):
    """Sources [T,L,N,8] as base64: how many each head has, their weights in 255ths, of those alone that have more than
    half of one, and their slots, from the first to the last, each as its distance from the one before: in bytes, of
    which 255 says that there is more to come."""
    order = np.argsort(slots, -1)
    slots, shares = (np.take_along_axis(x, order, -1) for x in (slots, np.rint(weights * 255).astype(np.uint8)))
    kept = shares > 0
    before = np.maximum.accumulate(np.where(kept, slots, 0), -1)
    distance = (slots - np.pad(before, [(0, 0)] * 3 + [(1, 0)])[..., :-1])[kept]
    steps = np.full(len(distance) + (distance // 255).sum(), 255, np.uint8)
    steps[np.cumsum(distance // 255 + 1) - 1] = distance % 255
    packed = lambda x: base64.b64encode(x.astype(np.uint8).tobytes()).decode()
    of_head = {"layers": slots.shape[1], "heads": slots.shape[2], "counts": packed(kept.sum(-1))}
    return of_head | {"steps": packed(steps), "weights": packed(shares[kept])}
