"""The deviations on trial, and the ways of the samplers that no figure shows."""

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab.faithful import forward, static

pytestmark = pytest.mark.in_haste


@pytest.fixture(scope="module")
def small(tiny_checkpoint):
    found = {}
    for dtype in ("float32", "bfloat16"):
        folder = tiny_checkpoint(dtype)
        found[dtype] = lab.load_model(folder, dtype), lab.load_reference(folder, dtype)
    return found


TOKENS = np.random.default_rng(0).integers(0, 128, (2, 24))


@pytest.fixture(scope="module")
def judged():
    """What is not on trial runs once for all deviations of one dtype, mode and config."""
    return defaultdict(dict)


@pytest.mark.parametrize("deviation", forward.DEVIATIONS, ids=lambda d: d.name)
def test_the_comparison_names_each_deviation(small, deviation, judged):
    model, reference = small[deviation.needs or "float32"]
    changed = deviation.of(model)
    alike = judged[model.dtype, deviation.mode, changed.config]
    trial = lambda: lab.compare(changed, reference, TOKENS, deviation.mode, deviation.replace, alike)
    if deviation.name == "rope":
        with pytest.raises(ValueError, match="xq_rope: ours is float32, expected bfloat16"):
            trial()
        return
    report = trial()
    assert (report.first_divergence.tap if report.first_divergence else "none") == deviation.tap


def test_functions_stand_in_while_a_program_is_traced_only(small):
    model, _ = small["float32"]
    before = {name: getattr(forward.llama, name) for name in forward.REVISIONS["cceeb84"]}
    with pytest.raises(AttributeError), forward.standing_in([("softmax", None), ("no_such_function", None)]):
        pass
    forward.teacher_forced(model, TOKENS, 20, forward.REVISIONS["cceeb84"], 1)
    assert all(getattr(forward.llama, name) is f for name, f in before.items())


def test_a_token_whose_keys_are_zero_is_hidden(small):
    """Its score is 0, which stands for an empty slot."""
    model, _ = small["float32"]
    hidden = TOKENS[0, 3]
    weights = model.weights._replace(tok_embeddings=model.weights.tok_embeddings.at[hidden].set(0))
    model = forward.changed(model, weights=weights)
    way = lambda functions: forward.teacher_forced(model, TOKENS[:1], 20, functions)[1]
    masked = way({"attend": forward.attend_what_is_not_zero})
    assert np.abs(masked - way({})).max() > 1e-3
    untouched = small["float32"][0]
    both = [
        forward.teacher_forced(untouched, TOKENS[:1], 20, functions)[1]
        for functions in ({}, {"attend": forward.attend_what_is_not_zero})
    ]
    np.testing.assert_allclose(*both, atol=1e-5)


SCORES = jnp.zeros((1, 4, 1, 16))
flat = jnp.zeros((1, 1, 512))  # 9 bits, varentropy 0


def test_it_asks_once_in_a_generation():
    sampler = static.PUBLISHED["cceeb84"]
    assert int(sampler([5], flat, SCORES).token[0]) == 2564
    assert int(sampler([2564, 5, 6], flat, SCORES).token[0]) != 2564
    assert int(static.PUBLISHED["9d41be6"]([2564], flat, SCORES * 0).branch) == 4  # hA of an even head: 4 bits


def test_the_nucleus_drops_the_likeliest():
    z = jnp.log(jnp.array([[0.5, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02]]))
    probs, ids = static.filtered_cceeb84(z, 1.0, 0.4, 7)
    assert probs[0, ids[0] == 0] == 0 and probs[0, ids[0] == 1] > 0


def test_one_key_for_every_call():
    z = jnp.asarray(np.random.default_rng(1).standard_normal((1, 1, 512)), jnp.float32)
    sampler = static.PUBLISHED["cceeb84"]
    assert sampler([1], z, SCORES).token == sampler([1], z, SCORES, jax.random.PRNGKey(1337)).token
    with pytest.raises(ValueError, match="one row at a time"):
        sampler([1], jnp.zeros((2, 1, 512)), SCORES)
