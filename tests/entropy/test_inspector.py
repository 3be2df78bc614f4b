"""The page that shows a Trace: its data, its texts as texts, and what it does in a browser, where there is one."""

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.generation.branching import Branched, Fork

pytestmark = pytest.mark.in_haste

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = (
    '</script><script>window.attacked="script"</script>',
    '<img src=x onerror="window.attacked=1">',
    "<!-- data -->",
)
SAMPLER = lab.samplers.adaptive("9d41be6", clarifying=None)


@pytest.fixture(scope="module")
def trace(tiny_checkpoint):
    """A generation's trace with everything in it, some of its tokens hostile, one of them very unlikely."""
    model = lab.load_model(tiny_checkpoint(tied=False))
    trace = lab.generate(model, list(range(3, 9)), 30, SAMPLER, trace=("lens", "attention"))[0].trace
    words = dict(zip(trace.alternatives[4, 1:].tolist(), HOSTILE, strict=False))
    trace.alternative_probabilities[4, 9] = 7.6e-07
    pieces = tuple(words.get(int(t), piece) for t, piece in zip(trace.tokens, trace.pieces, strict=True))
    pieces = (*pieces[:2], *HOSTILE, *pieces[5:])
    return replace(
        trace, words=trace.words | words, pieces=pieces, prompt_pieces=(HOSTILE[1], *trace.prompt_pieces[1:])
    )


class Elements(HTMLParser):
    """The names of a page's elements, and the texts of its tokens and of its data."""

    def __init__(self, page):
        super().__init__()
        self.names, self.styles, self.json = [], [], ""
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        self.styles += [value for key, value in attributes if (name, key) == ("span", "style")]

    def handle_data(self, text):
        self.json = text if text.startswith('{"') else self.json


def test_texts_stay_texts_and_the_data_is_whole(trace):
    found = Elements(trace._repr_html_())
    assert found.names.count("script") == 2 and "img" not in found.names and found.names.count("div") == 2
    assert sum(style.startswith("background:") for style in found.styles) == len(trace)
    data = json.loads(found.json)
    assert tuple(data["pieces"]) == trace.pieces and tuple(data["prompt"]) == trace.prompt_pieces
    words = np.array([[data["words"][w] for w in row] for row in data["alternatives"]])
    assert (words == np.vectorize(trace.words.get)(trace.alternatives)).all()
    np.testing.assert_allclose(data["alternative_probabilities"], trace.alternative_probabilities, rtol=5e-4)
    assert data["alternative_probabilities"][4][9] == 7.6e-07
    lens = np.array([[[data["words"][w] for w in layer] for layer in row] for row in data["lens"]["tokens"]])
    assert (lens == np.vectorize(trace.words.get)(trace.lens_tokens)).all()
    np.testing.assert_allclose(data["lens"]["probabilities"], trace.lens_probabilities, rtol=6e-3)


def unpacked(data):
    """{(head, slot): weight} of packed attention, heads counted through."""
    counts, weights, steps = (base64.b64decode(data[name]) for name in ("counts", "weights", "steps"))
    steps, weights, found = iter(steps), iter(weights), {}
    for head, count in enumerate(counts):
        slot = 0
        for _ in range(count):
            while (step := next(steps)) == 255:
                slot += 255
            slot += step
            found[head, slot] = next(weights) / 255
    assert next(steps, None) is None and next(weights, None) is None
    return found


def test_attention_is_packed_without_loss_of_slots():
    from entropix_lab.entropy.inspector import _packed

    rng = np.random.default_rng(0)
    slots = np.stack([rng.permutation(2000)[:8] for _ in range(24)]).reshape(3, 2, 4, 8)
    slots[0, 0, 0] = (255, 0, 510, 1020, 256, 254, 1, 511)
    weights = -np.sort(-rng.dirichlet(np.ones(8) / 3, (3, 2, 4)), -1)
    found = unpacked(_packed(slots, weights))
    want = {
        (i // 8, s): w for i, (s, w) in enumerate(zip(slots.ravel(), weights.ravel(), strict=True)) if w * 255 > 0.5
    }
    assert set(found) == set(want) and all(abs(found[key] - w) <= 0.5 / 255 + 1e-9 for key, w in want.items())


def test_200_tokens_of_the_demo_model_are_small():
    """Random data of its 30 layers and 9 heads, 5,000 words of seven letters, and no weight that is left out."""
    rng, T, L, N = np.random.default_rng(0), 200, 30, 9
    of = lambda *shape: rng.random((T, *shape), np.float32)
    some = lambda *shape: rng.integers(0, 5000, (T, *shape))
    words = {i: "".join(map(chr, rng.integers(97, 123, 7))) for i in range(5000)}
    numbers = ("entropy", "varentropy", "surprisal", "probability", "top_probability")
    by_head = {f"attention_{name}": of(L, N) for name in ("entropy", "varentropy", "rest", "sink")}
    plain = lab.Trace(
        tokens=some(),
        pieces=tuple(words[i] for i in range(T)),
        prompt="",
        live=300 + np.arange(T),
        rank=some(),
        head_disagreement=of(L),
        score_magnitude=of(L),
        words=words,
        alternatives=some(10),
        alternative_probabilities=of(10) * 1e-5,
        info={"branch": some() % 5} | {name: of() for name in ("temperature", "top_p", "top_k", "min_p")},
        **{name: of() for name in numbers},
        **by_head,
    )
    assert len(plain._repr_html_()) < 300_000
    slots = np.stack([rng.permutation(500)[:8] for _ in range(T * L * N)]).reshape(T, L, N, 8)
    lens = dict(lens_entropy=of(L), lens_rank=some(L), lens_tokens=some(L, 5), lens_probabilities=of(L, 5))
    full = replace(plain, **lens, attention_sources=slots, attention_weights=of(L, N, 8) / 8 + 0.01)
    assert 1_000_000 < len(full._repr_html_()) < 2_000_000


def test_thresholds_are_those_of_the_sampler():
    """The first branch whose conditions hold is the one that the sampler takes."""
    rng = np.random.default_rng(0)
    names = ("entropy", "varentropy", "attention entropy", "attention varentropy")
    for version in ("cceeb84", "9d41be6"):
        for sampler in (lab.samplers.adaptive(version), lab.samplers.adaptive(version, attention=True)):
            H, V, hA, vA = measured = rng.exponential((1, 1, 1.5, 0.4), (2000, 4)).T.astype(np.float32)
            of = dict(zip(names, measured, strict=True))
            fits = [[(of[n] < b) == (sign == "<") for n, sign, b in bounds] for bounds in sampler.thresholds.values()]
            want = np.argmax([*(np.all(bounds, 0) for bounds in fits), np.ones(2000, bool)], 0)
            bits = np.log(2)
            got = sampler.branch(*map(jnp.asarray, (H / bits, V / bits**2, hA / bits, vA / bits**2)))
            assert (got == want).mean() > 0.999 and len(set(want.tolist())) >= 4
    assert "HELV" not in lab.samplers.adaptive(quadrants=("LEHV",)).thresholds


def test_a_long_trace_is_shown_in_part(trace):
    assert "first 400" not in trace._repr_html_()
    long = replace(
        trace, **{name: np.repeat(x, 20, 0) for name, x in trace._arrays().items()}, pieces=trace.pieces * 20
    )
    long.info.update({name: np.repeat(x, 20, 0)[: len(long)] for name, x in trace.info.items()})
    assert "the first 400 of 600 tokens" in long._repr_html_()


def test_what_is_branched_is_traced(tiny_checkpoint):
    options = dict(max_new_tokens=6, sampler=lab.samplers.greedy(), n=2, m=2, trace="attention")
    (row,) = lab.branch(lab.load_model(tiny_checkpoint(texts=True)), ["ab"], tied=0.3, **options)
    assert row.trace.tokens.tolist() == row.tokens and len(row.trace.prompt_pieces) == len(row.prompt_tokens)
    np.testing.assert_allclose(row.trace.surprisal, -np.array(row.logprobs), atol=1e-5)
    assert row.forks and row.trace.attention_sources.shape[0] == len(row.tokens) and row.trace.lens_entropy is None
    assert row.trace.thresholds == lab.samplers.adaptive("9d41be6").thresholds


def test_what_was_branched_shows_its_forks(trace):
    forks = [Fork(5, ("a", HOSTILE[1]), (-1.5, -0.5), 1)]
    assert Branched([1], HOSTILE[1], forks=forks)._repr_html_() is None
    found = Elements(Branched([1], "", forks=forks, spent=9, trace=trace)._repr_html_())
    assert json.loads(found.json)["forks"] == {"5": {"texts": ["a", HOSTILE[1]], "scores": [-1.5, -0.5], "chosen": 1}}


ACTS = """<script>
const [one, two] = document.querySelectorAll(".entropix-inspector"), found = {};
const all = (root, of) => [...root.querySelectorAll(of)], texts = (root, of) => all(root, of).map((e) => e.textContent);
const tokens = all(one, ".tokens > span"), hover = one.querySelector(".hover");
const pinned = (root) => all(root, ".tokens > span").flatMap((e, i) => (e.classList.contains("pinned") ? [i] : []));
const press = (key) => new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
const key = (name) => document.activeElement.dispatchEvent(press(name));
found.roles = [one.querySelector(".tokens").role, tokens[3].role, tokens.filter((e) => e.tabIndex === 0).length];
found.label = tokens[4].getAttribute("aria-label");
tokens[4].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
found.hover = [hover.matches(":popover-open"), hover.textContent];
found.rows = [texts(hover, ".row .word"), texts(hover, ".row .number")];
one.querySelector(".tokens").dispatchEvent(new PointerEvent("pointerleave"));
found.left = hover.matches(":popover-open");
found.before = texts(one, ".layers").length;
tokens[7].click();
found.clicked = [pinned(one), pinned(two), tokens[7].ariaSelected, document.activeElement === tokens[7]];
found.layers = texts(one, ".layers .row > .word");
found.five = one.querySelector(".five").textContent;
found.point = ["cx", "cy"].map((at) => one.querySelector(".here").getAttribute(at));
found.points = all(one, ".dot").map((e) => [+e.getAttribute("cx"), +e.getAttribute("cy")]);
found.bounds = all(one, ".bound").length;
key("ArrowRight"), key("ArrowRight"), key("ArrowLeft");
found.stepped = [pinned(one), document.activeElement === tokens[8], pinned(two)];
all(one, ".tile")[2 * 4 + 3].dispatchEvent(new MouseEvent("click", { bubbles: true }));
found.grounds = all(one, ".prompt > span, .tokens > span").map((e) => e.style.background);
found.others = all(two, ".tokens > span").map((e) => e.style.background.includes("86"));
found.chosen = all(one, "select").map((e) => e.value);
key("Escape");
found.unpinned = [pinned(one), texts(one, ".layers").length];
key("End"), key("Enter");
found.last = [pinned(one), texts(one, ".fork").length, all(one, ".panel .card")[0].textContent];
two.querySelectorAll(".tokens > span")[29].click();
found.fork = [texts(two, ".fork").length, two.querySelector(".panel .card").textContent.includes("-0.50")];
found.attacked = [window.attacked ?? null, document.images.length];
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
def test_in_a_browser(trace, tmp_path):
    """Pointing, pinning and stepping in one of two inspectors on a page, as the browser's own DOM tells."""
    page = trace.save_html(tmp_path / "page.html").read_text()
    other = lab.entropy.token_html(trace, forks={29: Fork(29, ("a", HOSTILE[1]), (-1.5, -0.5), 1)})
    page = other.join(page.rsplit("</body>", 1))
    (tmp_path / "page.html").write_text(page + ACTS)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(html.unescape(re.search('<pre id="found">(.*?)</pre>', dom, re.S)[1]))

    assert found["attacked"] == [None, 0]
    assert found["roles"] == ["listbox", "option", 1] and f"rank {trace.rank[4]}" in found["label"]
    (opened, said), (words, numbers) = found["hover"], found["rows"]
    came = [] if trace.rank[4] < 10 else [trace.pieces[4]]
    assert opened and not found["left"] and words == [trace.words[int(t)] for t in trace.alternatives[4]] + came
    assert numbers[9] == "7.6e-07" and numbers[0] == f"{trace.alternative_probabilities[4, 0]:.3f}"
    branch = lab.samplers.BRANCHES[trace.info["branch"][4]]
    assert f"entropy{trace.entropy[4]:.2f} nats" in said and f"rank{trace.rank[4]}" in said and branch in said
    for name, sign, bound in SAMPLER.thresholds.get(branch, ()):
        assert f"{name} {sign} {bound:.2f} nats" in said

    assert found["before"] == 0 and found["clicked"] == [[7], [], "true", True]
    assert found["layers"] == [trace.words[int(t)] for t in trace.lens_tokens[7, :, 0]]
    assert (
        f"entropy {trace.lens_entropy[7, 2]:.2f} nats" in found["five"]
        and f"rank {trace.lens_rank[7, 2]}" in found["five"]
    )
    assert list(map(float, found["point"])) == found["points"][7] and found["bounds"] == 8
    x, y = np.array(found["points"]).T
    np.testing.assert_allclose(np.corrcoef(x, trace.entropy)[0, 1], 1, atol=1e-4)
    np.testing.assert_allclose(np.corrcoef(y, trace.varentropy)[0, 1], -1, atol=1e-4)

    assert (
        found["stepped"] == [[8], True, []] and found["chosen"] == ["attention", "2", "3"] and not any(found["others"])
    )
    of_head = dict(zip(trace.attention_sources[8, 2, 3], trace.attention_weights[8, 2, 3], strict=True))
    for slot, ground in enumerate(found["grounds"]):
        alpha = float(re.findall(r"[\d.]+", ground)[-1]) if ground else 0
        assert abs((alpha / 0.9) ** 2 - of_head.get(slot, 0)) < 0.02, slot
    assert found["unpinned"] == [[], 0]
    assert found["fork"] == [1, True]
    assert found["last"][:2] == [[29], 0] and "30 of 30" in found["last"][2]
