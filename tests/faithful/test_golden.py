"""Every figure that the original's own code produced, reproduced: tokens and branches exactly, the rest to a stated
tolerance. See tests/golden/README.md for where the figures come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix_lab.faithful import dirichlet, forward, static
from entropix_lab.faithful.golden import CONFIG, random_model
from entropix_lab.faithful.golden import figures as golden

KEY = jax.random.PRNGKey

EXACT = (0, 0)
LOGITS = (2e-5, 0)
PARAMETERS = (1e-6, 1e-6)
FLOAT32 = (1e-5, 1e-5)
BFLOAT16 = (4e-3, 4e-3)  # half a step between neighbours

MODEL = golden("model")
TOKENS, N = MODEL["tokens"], int(MODEL["n_prefill"])
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def attention_statistics(scores):
    """Entropy and varentropy of each head's attention, nats: scores [...,S] -> ([...], [...]). Computed in every layer
    by cceeb84 and used nowhere; the varentropy is NaN where a probability underflows."""
    p = jax.nn.softmax(scores, -1)
    H = -jnp.sum(jnp.where(p > 0, p * jnp.log(p), 0), -1)
    return H, jnp.sum(p * (jnp.log(p) + H[..., None]) ** 2, -1)


def model(dtype, norm_eps=forward.EPS):
    return forward.changed(random_model(DTYPES[dtype]), config=forward.changed(CONFIG, norm_eps=norm_eps))


def logits(revision, dtype, gap):
    """(what, got, want, tolerance) of every array of one way through one revision. bfloat16's logits are held to the
    same tolerance as float32's: they are all equal."""
    prompt, later, scores = forward.teacher_forced(model(dtype), TOKENS, N, forward.REVISIONS[revision], gap, 64)
    name = f"{revision}_{dtype}"
    yield "prompt", prompt, MODEL[f"{name}_prefill"], LOGITS
    yield "decode", later, MODEL[f"{name}_gap{gap}_decode"], LOGITS
    if dtype == "f32":
        yield "scores", scores[-1], MODEL[f"{name}_gap{gap}_lastscores"], LOGITS
    if (revision, dtype, gap) == ("cceeb84", "f32", 0):
        for kind, found in zip(("entropy", "varentropy"), attention_statistics(scores[:, :, :, 0]), strict=True):
            yield kind, found.swapaxes(0, 1), MODEL[f"cceeb84_attnstats_{kind}"], LOGITS


def mended(revision):
    """Without its deviations the original is Meta's model, and ours: two right programs are 3e-5 apart here."""
    prompt, later, _ = forward.teacher_forced(model("f32", 1e-5), TOKENS, N, {}, 0, 64)
    for whose in (f"{revision}_f32_fixed", "official_f32"):
        yield f"{whose} prompt", prompt, MODEL[f"{whose}_prefill"], (3e-5, 0)
        yield f"{whose} decode", later, MODEL[f"{whose}_decode"], (3e-5, 0)


def table():
    cos, sin = forward.table_in_jax(CONFIG, 64)
    yield "cos", cos, MODEL["freqs_cis_real"], (1e-7, 0)
    yield "sin", sin, MODEL["freqs_cis_imag"], (1e-7, 0)


def engine():
    """The server of 0a7f7bb: six first tokens, read at the first pad, and the pads attended as if they were text."""
    m, functions, n = model("f32"), forward.REVISIONS["0a7f7bb"], int(MODEL["engine_true_length"])
    cache = forward.new_cache(CONFIG, 1, 64)
    prompt, cache, _ = forward.xfmr(m.weights, m.config, MODEL["engine_prompt_padded"], 0, cache, functions)
    yield "prompt", prompt, MODEL["engine_prefill_logits"], LOGITS
    first = jax.lax.top_k(prompt[0, n], 6)[1]
    yield "first tokens", first, MODEL["engine_first_tokens"], EXACT
    cache, token = jax.tree.map(lambda x: jnp.repeat(x, 6, 0), cache), first
    for i in range(8):
        out, cache, _ = forward.xfmr(m.weights, m.config, token[:, None], n + 1 + i, cache, functions)
        token = jnp.argmax(out[:, 0], -1)
        yield f"logits {i}", out[:, 0], MODEL["engine_decode_logits"][:, i], LOGITS
        yield f"tokens {i}", token, MODEL["engine_decode_greedy_tokens"][:, i], EXACT


def metrics():
    g = golden("metrics")
    scores = jnp.zeros((1, 1, 1, 4))
    one = lambda z: static.measure(z[None, None], scores)[:2]
    rows = [one(jnp.asarray(row, jnp.float32)) for row in g["logits_f16"]]
    H, V = (np.array(x, np.float32) for x in zip(*rows, strict=True))
    yield "entropy", H, g["entropy_bits"], FLOAT32
    yield "varentropy", V, g["varentropy_bits2"], FLOAT32
    rows = [static.measure(jnp.asarray(row, jnp.bfloat16)[None, None], scores)[:2] for row in g["logits_f16"]]
    # not the varentropy: the original's own program rounds it otherwise under another release of JAX
    H = np.array([H for H, _ in rows], np.float32)
    yield "entropy in bfloat16", H, g["entropy_bits_bf16"], BFLOAT16
    logits = jnp.asarray(g["logits_f16"], jnp.float32)
    for kind, found in zip(("entropy_nats", "varentropy_nats2"), dirichlet.moments(dirichlet.normalise(logits)),
                           strict=True):  # fmt: skip
        yield f"with a floor, {kind}", found, g[f"head_{kind}"], FLOAT32
    scores = jnp.asarray(g["attn_scores_f16"], jnp.float32)
    names = dict(attn_entropy="hA", attn_varentropy="vA", agreement="agreement", interaction_strength="interaction")
    flat = jnp.zeros((1, 1, 4))
    padded = [static.measure(flat, s[None]) for s in scores]
    live = [static.measure(flat, s[None, ..., :n]) for s, n in zip(scores, g["attn_live"], strict=True)]
    for kind, rows in (("padded", padded), ("liveonly", live)):
        for theirs, ours in names.items():
            got = np.array([np.ravel(getattr(m, ours))[0] for m in rows])
            yield f"{kind} {theirs}", got, g[f"{kind}_{theirs}"], FLOAT32
    H, V = attention_statistics(scores[:, :, 0])
    yield "per head", H, g["attnstats_entropy_nats"], FLOAT32
    yield "per head, varentropy", V, g["attnstats_varentropy_nats2"], FLOAT32
    m = static.measure(*(jnp.asarray(g[f"batch_{x}_f16"], jnp.float32) for x in ("logits", "scores")))
    for theirs, ours in (names | dict(logits_entropy="H", logits_varentropy="V")).items():
        yield f"a batch's {theirs}", getattr(m, ours), g[f"batch_{theirs}"], FLOAT32


def thresholds(revision):
    """32 steps with 8 keys each."""
    z = golden("sampler")
    g = {name: z[f"{revision}_{name}"] for name in "branch tokens candidates temperature top_p top_k min_p".split()}
    decide, found = static.PUBLISHED[revision], {name: [] for name in g}
    blank = dict(temperature=np.nan, top_p=np.nan, top_k=-1, min_p=np.nan)
    for i in range(32):
        logits, scores = (jnp.asarray(z[f"{revision}_{x}_f16"][i], jnp.float32) for x in ("logits", "scores"))
        each = [decide([z[f"{revision}_prev_token"][i]], logits[None, None], scores[None], KEY(k)) for k in z["keys"]]
        found["branch"].append(each[0].branch)
        found["tokens"].append([int(d.token[0]) for d in each])
        found["candidates"].append([d.candidates if d.candidates is not None else [-1] * 5 for d in each])
        for name, nothing in blank.items():
            value = getattr(each[0], name)
            found[name].append(nothing if value is None else float(value))
    for name, want in g.items():
        exact = name in ("branch", "tokens", "candidates", "top_k")
        yield name, np.array(found[name]), want, EXACT if exact else PARAMETERS


def draws(revision):
    z, filtered = golden("sampler"), getattr(static, f"filtered_{revision}")
    for i, (T, top_p, top_k) in enumerate(z["core_params"]):
        logits = jnp.asarray(z["core_logits_f16"][i], jnp.float32)[None]
        tokens = [int(static.draw(filtered, logits, T, top_p, int(top_k), KEY(k))[0]) for k in range(64)]
        yield f"tokens {i}", np.array(tokens), z[f"core_tokens_{revision}"][i], EXACT
        if revision == "cceeb84":
            probs = filtered(logits, T, top_p, int(top_k))[0][0]
            yield f"probabilities {i}", probs, z["core_probs_ascending"][i, : int(top_k)], PARAMETERS


MILDER = dict(
    outlier_bilinear=0.02, outlier_state_ent=-0.55, outlier_state_std=0.1, outlier_naked_varent=0.3, argmax_weight=0.5,
    argmax_bias=0.0, dirichlet_weight=0.9, dirichlet_bias=0.0, target_ent=(0.1, 0.2, 0.1, 0.2), target_inv_temp=0.5,
)  # fmt: skip
TRAJECTORIES = {
    "ads": dirichlet.Config(),
    "adsfix": dirichlet.Config(log_of_a_log=False),
    "adscfg": dirichlet.Config(log_of_a_log=False, **MILDER),
    "sample": dirichlet.Config(),
}


def trajectory(name):
    """20 steps of two rows, each from the state that the original had."""
    z, config = golden(f"dirichlet_{name}"), TRAJECTORIES[name]
    whole = name == "sample"
    dtype = jnp.bfloat16 if whole else jnp.float32
    tolerance = lambda field: BFLOAT16 if whole or field in ("emwa_dir", "emwa_temp") else (2e-4, 2e-4)
    of = lambda i, f: jnp.asarray(z[f"state_{f}"][i]).astype(jnp.bfloat16 if f in ("emwa_dir", "emwa_temp") else dtype)
    states = [dirichlet.State(*(of(i, f) for f in dirichlet.State._fields)) for i in range(21)]
    fresh = dirichlet.initial_state(jnp.asarray(z["prefill_logits"]).astype(dtype), 2, config, dtype)
    for field in fresh._fields:
        yield f"initial {field}", getattr(fresh, field), getattr(states[0], field), tolerance(field)
    for i, logits in enumerate(z["step_logits"]):
        key, logits = KEY(int(z["key_seed_base"]) + i), jnp.asarray(logits).astype(dtype)
        state, token, report = dirichlet.step(key, states[i], logits, config)
        if whole:
            token, state, quadrant = dirichlet.sample(states[i], logits, config, key=key)
            yield f"quadrants {i}", quadrant, z["case"][i], EXACT
        yield f"tokens {i}", token, z["tokens"][i], EXACT
        yield f"policy {i}", report.policy, z["policy"][i].astype(int), EXACT
        for field in state._fields:
            yield f"{field} {i}", getattr(state, field), getattr(states[i + 1], field), tolerance(field)
        for field in set(report._fields) - {"policy"}:
            yield f"{field} {i}", getattr(report, field), z[field][i], BFLOAT16 if whole else tolerance(field)


def helpers():
    g = golden("helpers")
    for name in sorted(k.removesuffix("_target") for k in g.files if k.startswith("fit") and k.endswith("_target")):
        alpha, converged = dirichlet.fit(jnp.asarray(g[f"{name}_target"])[None], jnp.float32)
        yield name, alpha[0], g[f"{name}_alpha_f32"], FLOAT32
        yield f"{name} converged", converged, g[f"{name}_converged"], EXACT
        narrow = dirichlet.fit(jnp.asarray(g[f"{name}_target"])[None])[0][0]
        yield f"{name} in bfloat16", narrow, g[f"{name}_alpha_bf16"], BFLOAT16
    step = dirichlet.halley(*(jnp.asarray(g[f"halley_{x}"]) for x in ("alpha", "target")))
    yield "halley", step, g["halley_delta"], (1e-5, 1e-4)
    for i, target in enumerate(g["tt_targets"]):
        T, converged = dirichlet.tune(jnp.asarray(g["tt_logits"]), jnp.full(5, target), jnp.float32)
        # one rounding of the entropy moves T by this much, which near ln 64 is more than T's own rounding
        slope = dirichlet.entropy_and_slopes(jnp.asarray(g["tt_logits"]), jnp.asarray(g["tt_T_f32"][i]))[1]
        for row, one in enumerate(np.spacing(np.float32(target)) / np.abs(slope)):
            want = g["tt_T_f32"][i][row]
            yield f"temperature for {target} in row {row}", T[row], want, (FLOAT32[0] + float(one), FLOAT32[1])
        yield f"converged for {target}", converged, g["tt_converged"][i], EXACT
    slopes = dirichlet.entropy_and_slopes(jnp.asarray(g["tt_logits"]), jnp.asarray(g["egh_T"]))
    for name, got in zip(("ent", "grad", "hess"), slopes, strict=True):
        yield name, got, g[f"egh_{name}"], FLOAT32
    for name, dtype in DTYPES.items():
        log_p = dirichlet.normalise(jnp.asarray(g["norm_logits"]).astype(dtype))
        yield f"normalised in {dtype}", log_p, g[f"norm_out_{name}"], FLOAT32 if name == "f32" else BFLOAT16
    logp, alpha = jnp.asarray(g["dir_logp"]), jnp.asarray(g["dir_alpha"])
    yield "log likelihood", dirichlet.log_likelihood(logp, alpha), g["dir_loglik"], FLOAT32
    yield "drawn", dirichlet.draw_distribution(KEY(7), alpha), g["dir_sample_key7"], FLOAT32


FAMILIES = {
    **{f"logits {r} {d} gap {n}": (logits, r, d, n) for r in ("cceeb84", "0a7f7bb") for d in DTYPES for n in (0, 1)},
    **{f"{r} mended": (mended, r) for r in ("cceeb84", "0a7f7bb")},
    **{f"thresholds {r}": (thresholds, r) for r in static.PUBLISHED},
    **{f"draws {r}": (draws, r) for r in static.PUBLISHED},
    **{f"trajectory {name}": (trajectory, name) for name in TRAJECTORIES},
    "table": (table,), "engine": (engine,), "metrics": (metrics,), "helpers": (helpers,),
}  # fmt: skip


def agree(what, got, want, tolerance):
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    np.testing.assert_allclose(got, want, atol=tolerance[0], rtol=tolerance[1], err_msg=what)


def disturbed(want, tolerance, rng):
    """want with one of its finite entries off by ten times its tolerance, or by one where it must be exact."""
    want = np.array(want, np.float64)
    finite = np.flatnonzero(np.isfinite(want))
    if finite.size:
        entry = want.flat[i := rng.choice(finite)]
        want.flat[i] += 1 if tolerance == EXACT else 10 * (tolerance[0] + tolerance[1] * abs(entry))
        return want
    return np.zeros_like(want)  # where everything is NaN a number is wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_the_originals_figures_are_reproduced_and_a_disturbed_one_is_not(family):
    make, *arguments = FAMILIES[family]
    rng, compared = np.random.default_rng(0), 0
    for what, got, want, tolerance in make(*arguments):
        agree(what, got, want, tolerance)
        with pytest.raises(AssertionError):
            agree(what, got, disturbed(want, tolerance, rng), tolerance)
        compared += 1
    assert compared


@pytest.mark.parametrize("revision", ["cceeb84", "0a7f7bb"])
@pytest.mark.parametrize("name", ["eps", "rms_norm", "silu", "attend", "write_rows"])
def test_without_one_of_its_deviations_it_is_not_the_original(revision, name):
    functions, dtype = dict(forward.REVISIONS[revision]), "bf16" if name in ("rms_norm", "silu") else "f32"
    functions.pop(name, None)
    m = model(dtype, 1e-5 if name == "eps" else forward.EPS)
    _, later, _ = forward.teacher_forced(m, TOKENS, N, functions, 1, 64)
    assert np.abs(later - MODEL[f"{revision}_{dtype}_gap1_decode"]).max() > 100 * LOGITS[0]


def test_attention_metrics_are_rounded_as_op_by_op():
    """As one program, where XLA might keep more of bfloat16's precision; the original runs them one by one."""
    for scores in jnp.asarray(golden("metrics")["attn_scores_f16"][:8], jnp.bfloat16):
        got = static._of_attention(scores[None])
        with jax.disable_jit():
            want = static._of_attention.__wrapped__(scores[None])
        assert all((a == b).all() for a, b in zip(got, want, strict=True))
