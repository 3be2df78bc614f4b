// Brings one inspector to life: hover, pin, step. Texts of the model enter the page as text nodes only.
(() => {
  // This script stands inside its inspector, so that several on one page do not meet.
  const script = document.currentScript;
  const root = script ? script.parentElement : document.querySelector(".entropix-inspector:not(.live)");
  if (!root || root.classList.contains("live")) return;
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  root.classList.add("live");
  root.querySelector(".plain").remove();

  const SVG = new Set(["svg", "g", "rect", "circle", "line", "text", "title"]);
  const make = (name, attributes = {}, ...children) => {
    const space = SVG.has(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const made = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children.flat(2).filter((child) => child !== null));
    return made;
  };
  const div = (name, ...children) => make("div", { class: name }, ...children);
  const inline = (name, ...children) => make("span", { class: name }, ...children);
  const text = root.querySelector(".text"), list = root.querySelector(".tokens");
  const prompts = [...root.querySelectorAll(".prompt > span")], tokens = [...list.children];
  const panel = make("div", { class: "panel", role: "region", "aria-label": "the pinned token" });
  const hover = make("div", { class: "card hover", role: "tooltip", popover: "manual", hidden: "" });
  const state = { pinned: null, pointed: null, current: 0, shade: data.shade, layer: null, head: "all" };

  // ---- how numbers and tokens are written
  const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  const code = (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0");
  const shown = (piece) => {
    const written = piece.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(HIDDEN, code);
    if (!written.trim()) return "·".repeat(written.length) || "∅";
    return written.replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length));
  };
  const word = (piece) => make("bdi", { class: "word", title: piece }, shown(piece));
  const small = (x) => x.toExponential(1).replace(/e-(\d)$/, "e-0$1");
  const probability = (p) => {
    if (p === null) return "–";
    if (p < 0.001) return p > 0 ? small(p) : "< 1e-38";
    return p.toFixed(p >= 0.01 ? 3 : 4);
  };
  const number = (x) => {
    if (x === null) return "–";
    if (Number.isInteger(x)) return `${x}`;
    return Math.abs(x) >= 0.01 ? x.toFixed(2) : small(x);
  };
  const percent = (w) => (w >= 0.1 ? `${Math.round(100 * w)} %` : `${(100 * w).toFixed(1)} %`);
  const UNITS = { entropy: "nats", surprisal: "nats", varentropy: "nats²" };
  const pieceOf = (i) => data.pieces[i];

  // ---- attention: of each head its largest sources, weights in 255ths
  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const attention = data.attention && (() => {
    // slots are distances from the one before, of which a byte of 255 is a part
    const { layers, heads } = data.attention;
    const [counts, weights, steps] = ["counts", "weights", "steps"].map((name) => bytes(data.attention[name]));
    const starts = new Uint32Array(counts.length + 1), slots = new Uint32Array(weights.length);
    let read = 0, k = 0;
    counts.forEach((n, i) => {
      starts[i + 1] = starts[i] + n;
      for (let slot = 0; k < starts[i + 1]; slots[k++] = slot) {
        do slot += steps[read]; while (steps[read++] === 255);
      }
    });
    const of = (token, layer, head) => {
      const found = new Map(), chosen = head === "all" ? [...Array(heads).keys()] : [head];
      for (const one of chosen) {
        const at = (token * layers + layer) * heads + one;
        for (let k = starts[at]; k < starts[at + 1]; k++) {
          found.set(slots[k], (found.get(slots[k]) || 0) + weights[k] / 255 / chosen.length);
        }
      }
      return found;
    };
    state.layer = Math.floor(layers / 2);
    return { layers, heads, of };
  })();
  const spans = [...prompts, ...tokens], texts = [...data.prompt, ...data.pieces];
  const spanOf = (slot) => spans[slot - data.live + prompts.length];
  const textOf = (slot) => texts[slot - data.live + prompts.length];

  // ---- the text and its grounds
  const focus = () => state.pinned ?? state.pointed;
  const shade = () => {
    const back = state.shade === "attention";
    const found = back && focus() !== null ? attention.of(focus(), state.layer, state.head) : new Map();
    for (const span of spans) span.style.background = "";
    text.querySelector(".prompt").style.opacity = back ? 1 : 0.6;
    if (back) {
      for (const [slot, weight] of found) {
        const span = spanOf(slot);
        if (span) span.style.background = `rgba(var(--sky), ${(0.9 * Math.sqrt(weight)).toFixed(2)})`;
      }
    } else {
      const { values, full } = data.shades[state.shade];
      tokens.forEach((span, i) => {
        const share = Math.min(1, values[i] / full);
        span.style.background = `rgba(var(--orange), ${(0.65 * share).toFixed(2)})`;
      });
    }
    tokens.forEach((span, i) => {
      span.classList.toggle("pinned", i === state.pinned);
      span.setAttribute("aria-selected", i === state.pinned);
      span.tabIndex = i === state.current ? 0 : -1;
    });
    drawScale();
  };

  // ---- what is said of a token
  const facts = (i) => {
    const named = [
      ["entropy", `${number(data.entropy[i])} nats`],
      ["varentropy", `${number(data.varentropy[i])} nats²`],
      ["probability", probability(data.probability[i])],
      ["rank", `${data.rank[i]}`],
      ["surprisal", `${number(data.surprisal[i])} nats`],
      ["slots seen", `${data.live + i}`],
    ];
    for (const [name, values] of Object.entries(data.info)) named.push([name.replace(/_/g, " "), number(values[i])]);
    return div("facts", ...named.flat().map((said) => make("span", {}, said)));
  };
  const rule = (i) => {
    if (!data.taken) return null;
    const name = data.taken.names[data.taken.of[i]], colour = data.taken.colours[data.taken.of[i]];
    const written = ([what, sign, bound]) => `${what} ${sign} ${number(bound)} ${UNITS[what] || ""}`;
    const bounds = (data.thresholds[name] || []).map(written).join(", ");
    const otherwise = Object.keys(data.thresholds).length ? ": none of the others fits" : "";
    const style = `border-color:${colour}`;
    return make("div", { class: "rule", style }, make("b", {}, name), bounds ? `: ${bounds}` : otherwise);
  };
  const track = (share) => div("track", make("i", { style: `width:${(100 * share).toFixed(1)}%` }));
  const likeliest = (i) => {
    if (!data.alternatives) return null;
    const line = (piece, p, came) =>
      div(came ? "row came" : "row", word(piece), track(p), inline("number", probability(p)));
    const rank = data.rank[i], probabilities = data.alternative_probabilities[i];
    const rows = data.alternatives[i].map((w, k) => line(data.words[w], probabilities[k], k === rank));
    if (rank >= rows.length) rows.push(line(pieceOf(i), data.probability[i], true));
    return div("likeliest", div("heading", "likeliest tokens; orange: the one that came"), rows);
  };
  const forked = (i) => {
    const fork = data.forks[i];
    if (!fork) return null;
    const line = (said, k) =>
      div(k === fork.chosen ? "tried chosen" : "tried", `${fork.scores[k].toFixed(2)}  `, word(said));
    return div("forked", div("heading", "fork: continuations, and their mean log-probability"), fork.texts.map(line));
  };
  const summary = (i) => {
    const token = make("bdi", { class: "token" }, shown(pieceOf(i)));
    const top = div("top", token, inline("aside", `${i + 1} of ${tokens.length}`));
    return [top, facts(i), rule(i), likeliest(i), forked(i)].filter(Boolean);
  };

  // ---- its point in the plane of entropy and varentropy
  const ticks = (top) => {
    const rough = top / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
    return Array.from({ length: Math.floor(top / step) + 1 }, (_, k) => +(k * step).toPrecision(3));
  };
  const plane = (here) => {
    const [W, H, left, bottom] = [270, 200, 30, 30];
    const bounds = Object.values(data.thresholds).flat();
    const boundsOf = (what) => bounds.filter(([name]) => name === what).map(([, , bound]) => bound);
    const top = (what) => 1.06 * Math.max(0.5, ...data[what], ...boundsOf(what));
    const X = top("entropy"), Y = top("varentropy");
    const x = (h) => left + (h / X) * (W - left - 6), y = (v) => H - bottom - (v / Y) * (H - bottom - 6);
    const label = "entropy and varentropy of every token";
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
    const middle = { "text-anchor": "middle" }, end = { "text-anchor": "end" };
    const line = (name, x1, y1, x2, y2) => make("line", { class: name, x1, y1, x2, y2 });
    const colours = data.taken ? data.taken.colours : ["rgb(86, 180, 233)"];
    const labels = [];
    // branches are tried in their order, so the first lies on top
    for (const [name, of] of Object.entries(data.thresholds).reverse()) {
      const box = { entropy: [0, X], varentropy: [0, Y] };
      for (const [what, sign, bound] of of) if (what in box) box[what][sign === "<" ? 1 : 0] = bound;
      const wide = x(box.entropy[1]) - x(box.entropy[0]), high = y(box.varentropy[0]) - y(box.varentropy[1]);
      const colour = data.taken ? colours[data.taken.names.indexOf(name)] : "gray";
      const area = { x: x(box.entropy[0]), y: y(box.varentropy[1]), width: wide, height: high };
      svg.append(make("rect", { class: "paper", ...area }), make("rect", { ...area, fill: colour, opacity: 0.12 }));
      const corner = { x: x(box.entropy[1]) - 3, y: y(box.varentropy[1]) + 11, ...end };
      if (wide > 30 && high > 12) labels.push(make("text", corner, name));
    }
    for (const bound of boundsOf("entropy")) svg.append(line("bound", x(bound), y(0), x(bound), y(Y)));
    for (const bound of boundsOf("varentropy")) svg.append(line("bound", x(0), y(bound), x(X), y(bound)));
    svg.append(...labels, line("axis", left, y(0), W - 6, y(0)), line("axis", left, y(0), left, 6));
    for (const h of ticks(X)) svg.append(make("text", { x: x(h), y: H - bottom + 12, ...middle }, `${h}`));
    for (const v of ticks(Y)) svg.append(make("text", { x: left - 4, y: y(v) + 3, ...end }, `${v}`));
    const upright = `translate(9 ${(H - bottom) / 2}) rotate(-90)`;
    svg.append(make("text", { x: (W + left) / 2, y: H - 4, ...middle }, "entropy, nats"));
    svg.append(make("text", { transform: upright, ...middle }, "varentropy, nats²"));
    data.entropy.forEach((h, i) => {
      const fill = colours[data.taken ? data.taken.of[i] : 0];
      const dot = make("circle", { class: "dot", cx: x(h), cy: y(data.varentropy[i]), r: 3, fill });
      dot.addEventListener("click", () => pin(i));
      dot.addEventListener("pointerenter", () => point(i, dot));
      dot.addEventListener("pointerleave", () => point(null));
      svg.append(dot);
    });
    if (here !== null) {
      svg.append(make("circle", { class: "here", cx: x(data.entropy[here]), cy: y(data.varentropy[here]), r: 6 }));
    }
    const said = Object.keys(data.thresholds).length ? "all tokens; dashed: the sampler's thresholds" : "all tokens";
    return div("card plane", div("heading", said), svg);
  };

  // ---- its way through the layers: a row to each, with the logit lens and a tile to each head
  const select = (label, options, value, change) => {
    const box = make("select", { "aria-label": label }, options.map((o) => make("option", { value: o }, `${o}`)));
    box.value = value;
    box.addEventListener("change", () => change(box.value));
    return box;
  };
  const look = (layer, head) => {
    Object.assign(state, { layer, head, shade: "attention" });
    render();
  };
  const tiles = (i, l) => {
    const { heads } = attention;
    const each = [...Array(heads).keys()].map((n) => {
      const rest = Math.max(0, ...[...attention.of(i, l, n)].map(([slot, weight]) => (slot > 0 ? weight : 0)));
      const chosen = l === state.layer && (n === state.head || state.head === "all");
      const title = `layer ${l}, head ${n}: ${percent(rest)} on the slot that it attends to most, the first apart`;
      const style = `background:rgba(var(--sky), ${rest.toFixed(2)})`;
      const tile = make("i", { class: chosen ? "tile chosen" : "tile", title, style });
      tile.addEventListener("click", () => look(l, n));
      return tile;
    });
    const style = `grid-template-columns:repeat(${heads}, 1fr);width:${Math.min(heads * 13, 170)}px`;
    return make("div", { class: "tiles", style }, each);
  };
  const lens = (i, l, top) => {
    const { entropy, tokens: ids, probabilities } = data.lens;
    const [id] = ids[i][l], [p] = probabilities[i][l];
    return [track(entropy[i][l] / top), word(data.words[id]), inline("number", probability(p))];
  };
  const five = (i, l) => {
    const { entropy, tokens: ids, probabilities, rank } = data.lens;
    const written = (w, k) => [k ? ", " : "", word(data.words[w]), ` ${probability(probabilities[i][l][k])}`];
    const said = [`: entropy ${number(entropy[i][l])} nats, `, word(pieceOf(i)), ` has rank ${rank[i][l]}`];
    return [make("b", {}, `after layer ${l}`), ...said, make("br"), ...ids[i][l].map(written).flat()];
  };
  const sources = (i) => {
    const range = (n) => [...Array(n).keys()];
    const most = [...attention.of(i, state.layer, state.head)].sort((a, b) => b[1] - a[1]).slice(0, 5);
    const about = (slot, weight) => ` ${percent(weight)}${slot ? "" : " (first slot)"}  `;
    const written = ([slot, weight]) => [word(textOf(slot) ?? `slot ${slot}`), about(slot, weight)];
    const layer = select("layer", range(attention.layers), state.layer, (l) => look(+l, state.head));
    const ofHead = (n) => look(state.layer, n === "all" ? n : +n);
    const head = select("head", ["all", ...range(attention.heads)], state.head, ofHead);
    return div("sources", div("chosen", "attention: layer ", layer, " head ", head), div("aside", most.map(written)));
  };
  const depth = (i) => {
    if (!data.lens && !attention) return null;
    const count = data.lens ? data.lens.entropy[i].length : attention.layers;
    const top = data.lens && Math.max(...data.lens.entropy[i], 1e-3);
    const about = div("five");
    const columns = "1.3em" + (data.lens ? " minmax(30px, 1fr) 7em 3.6em" : "") + (attention ? " auto" : "");
    const rows = [...Array(count).keys()].map((l) => {
      const first = data.lens && data.lens.rank[i][l] === 0;
      const row = div(first ? "row came" : "row", inline("number aside", `${l}`));
      row.style.gridTemplateColumns = columns;
      row.append(...(data.lens ? lens(i, l, top) : []), ...(attention ? [tiles(i, l)] : []));
      if (data.lens) row.addEventListener("pointerenter", () => about.replaceChildren(...five(i, l)));
      return row;
    });
    if (data.lens) about.append(...five(i, count - 1));
    const said = [data.lens && `logit lens (full bar: ${number(top)} nats)`, attention && "attention heads"];
    const below = [data.lens && about, attention && sources(i)].filter(Boolean);
    return div("card layers", div("heading", said.filter(Boolean).join(", ")), rows, below);
  };

  // ---- what happens
  const point = (i, at) => {
    state.pointed = i;
    if (state.shade === "attention" && state.pinned === null) shade();
    hover.hidden = i === null || i === state.pinned;
    if (hover.hidden) return hover.hidePopover?.();
    hover.replaceChildren(...summary(i));
    hover.showPopover?.(); // above everything: a notebook's outputs clip what leaves them
    const { left, top, bottom } = [...(at || tokens[i]).getClientRects()].pop() || root.getBoundingClientRect();
    const { width, height } = hover.getBoundingClientRect();
    const below = Math.min(bottom + 6, Math.max(4, innerHeight - height - 4));
    const fits = bottom + 6 + height < innerHeight || top < height + 6;
    hover.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
    hover.style.top = `${fits ? below : top - height - 6}px`;
  };
  const pin = (i) => {
    state.pinned = i;
    if (i !== null) state.current = i;
    point(null);
    render();
  };
  const step = (to) => {
    state.current = Math.max(0, Math.min(tokens.length - 1, to));
    if (state.pinned !== null) pin(state.current);
    else shade();
    tokens[state.current].focus({ preventScroll: true });
    tokens[state.current].scrollIntoView({ block: "nearest" });
  };
  const line = (direction) => {
    // the token nearest to this one on the next line
    const here = tokens[state.current].getBoundingClientRect();
    const far = (box) => Math.abs(box.left - here.left) + 50 * Math.abs(box.top - here.top);
    const boxes = tokens.map((span, i) => [i, span.getBoundingClientRect()]);
    const beyond = boxes.filter(([, box]) => direction * (box.top - here.top) > 4);
    return beyond.length ? beyond.reduce((a, b) => (far(b[1]) < far(a[1]) ? b : a))[0] : state.current;
  };
  const KEYS = {
    ArrowRight: () => step(state.current + 1),
    ArrowLeft: () => step(state.current - 1),
    ArrowDown: () => step(line(1)),
    ArrowUp: () => step(line(-1)),
    Home: () => step(0),
    End: () => step(tokens.length - 1),
    Enter: () => pin(state.current === state.pinned ? null : state.current),
    " ": () => KEYS.Enter(),
    Escape: () => pin(null),
  };
  const indexOf = (event) => tokens.indexOf(event.target.closest(".tokens > span"));
  list.addEventListener("click", (event) => {
    const i = indexOf(event);
    if (i < 0) return;
    pin(i === state.pinned ? null : i);
    tokens[i].focus({ preventScroll: true });
  });
  list.addEventListener("pointerover", (event) => point(indexOf(event) < 0 ? null : indexOf(event)));
  list.addEventListener("pointerleave", () => point(null));
  list.addEventListener("focusin", (event) => {
    state.current = indexOf(event);
    if (event.target.matches(":focus-visible") && state.pinned === null) point(state.current);
  });
  list.addEventListener("focusout", () => point(null));
  root.addEventListener("keydown", (event) => {
    const act = KEYS[event.key], inText = list.contains(event.target);
    if (!act || (!inText && event.key !== "Escape") || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });

  // ---- the bar above the text
  const bar = div("bar");
  const drawScale = () => {
    const back = state.shade === "attention";
    const modes = [...Object.keys(data.shades), ...(attention ? ["attention"] : [])];
    const ground = select("ground", modes, state.shade, (mode) => {
      state.shade = mode;
      render();
    });
    const [colour, strongest] = back ? ["--sky", 0.9] : ["--orange", 0.65];
    const style = `background:linear-gradient(90deg, transparent, rgba(var(${colour}), ${strongest}))`;
    const heads = state.head === "all" ? "all heads" : `head ${state.head}`;
    const ofHead = `layer ${state.layer}, ${heads}; root of the weight`;
    const ofAttention = focus() === null ? "of the token you point at" : ofHead;
    const said = back ? ofAttention : `0 to ${data.shades[state.shade].full} ${UNITS[state.shade] || ""}`;
    const branches = (data.taken ? data.taken.names : []).map((name, k) => {
      const count = data.taken.of.filter((taken) => taken === k).length;
      const style = `border-color:${data.taken.colours[k]}`;
      return count ? make("span", { class: "branch", style }, `${name} ${count}`) : null;
    });
    const key = (name) => make("kbd", {}, name);
    const hint = inline("hint", "click pins, ", key("←"), " ", key("→"), " step, ", key("Esc"), " unpins");
    const label = make("label", {}, "ground: ", ground);
    const scale = [label, make("span", { class: "scale", style }), inline("said", said)];
    bar.replaceChildren(...scale, ...branches.filter(Boolean), hint);
  };
  const render = () => {
    const i = state.pinned, active = document.activeElement;
    const used = root.contains(active) && active.getAttribute("aria-label");
    const first = div("stack", i === null ? null : div("card", summary(i)), plane(i));
    panel.replaceChildren(...[first, i === null ? null : depth(i)].filter(Boolean));
    shade();
    // what was used last is new, and keeps the focus
    if (used) root.querySelector(`select[aria-label="${CSS.escape(used)}"]`)?.focus();
  };
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "tokens: arrow keys step, Enter pins, Escape unpins");
  tokens.forEach((span, i) => {
    span.setAttribute("role", "option");
    span.setAttribute("aria-label", `${shown(pieceOf(i))}, ${span.title}`);
    span.removeAttribute("title");
    if (data.forks[i]) span.classList.add("fork");
  });
  const body = make("div", { class: data.lens || attention ? "body rich" : "body" });
  text.before(bar, body);
  body.append(text, panel);
  root.append(hover);
  render();
})();
