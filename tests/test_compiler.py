import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropix_lab as lab
from entropix_lab import compiler
from entropix_lab.compiler import ELSEWHERE, REPRODUCERS, canary, without_fusions, wrong
from entropix_lab.llama import model

pytestmark = pytest.mark.in_haste  # what 0.10.2 gets wrong, it gets wrong in haste too

JAXLIB, ON_CPU = jax.lib.__version__, jax.default_backend() == "cpu"


@pytest.fixture
def fresh():
    """The canary as in a new process."""
    canary.cache_clear()
    yield
    canary.cache_clear()


def of_threes(x, weight, eps):
    """RMSNorm whose sum of squares 0.10.2 gets wrong: of permuted threes, past the 128 KiB that it gets right."""
    x32, (B, T, D) = model.at_least_float32(x), x.shape
    threes = jnp.pad(x32, ((0, 0), (0, 0), (0, -D % 3))).reshape(-1, 3)
    rows = jnp.concatenate([jnp.zeros((32_768, 3), x32.dtype), threes])
    permuted = np.roll(np.eye(3, dtype=x32.dtype), 1, 0)
    squares = jax.vmap(lambda row: jnp.sum((permuted @ row) ** 2))(rows)[-len(threes) :]
    mean = squares.reshape(B, T, -1).sum(-1, keepdims=True) / D
    return (x32 * jax.lax.rsqrt(mean + eps)).astype(x.dtype) * weight


def of_ones(x, weight, eps, n=16):
    """RMSNorm whose sum of squares 0.10.2 and later get wrong: diagonal matrices times a matrix of ones."""
    x32 = model.at_least_float32(x)
    diagonal = x32.reshape(-1, n)[..., None] * jnp.eye(n, dtype=x32.dtype)
    squares = jax.lax.optimization_barrier(jnp.sum((diagonal @ jnp.ones_like(diagonal)) * diagonal, -1))
    mean = squares.reshape(x.shape).mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + eps)).astype(x.dtype) * weight


def error(f, dtype, D, options=None):
    """The largest error of f as a part of the largest value, against float64 in NumPy."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, 16, D), D))
        out = np.asarray(jax.jit(f, compiler_options=options)(x, w, 1e-5).astype(jnp.float64))
        x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    right = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w
    return np.nan_to_num(abs(out - right), nan=np.inf).max() / abs(right).max()


def test_this_release_is_right():
    assert wrong() == []


def test_all_known_programs_are_right_without_fusions():
    if not without_fusions() and JAXLIB != "0.8.0":
        pytest.skip("fusions cannot be switched off here")
    assert wrong(REPRODUCERS | ELSEWHERE, without_fusions()) == []


@pytest.mark.parametrize("D", [64, 576])
@pytest.mark.parametrize("dtype,rounding", [("float32", 1e-6), ("float64", 1e-14), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("f,known", [(of_threes, {"0.10.2"}), (of_ones, {"0.10.2", "0.11.2", "0.12.0.1"})])
def test_a_norm_that_is_right_and_compiled_wrong(f, known, dtype, rounding, D):
    assert error(model.rms_norm, dtype, D) < rounding
    if ON_CPU:
        assert error(f, dtype, D, without_fusions()) < rounding
        assert JAXLIB not in known or error(f, dtype, D) > 0.05
        assert f is not of_threes or JAXLIB in known or error(f, dtype, D) < rounding


def test_without_fusions_compiles_and_leaves_the_forward_as_it_is(tiny_checkpoint):
    loaded, tokens = lab.load_model(tiny_checkpoint()), np.arange(12)[None]
    cache = lab.KVCache.new(loaded.config, 1, 16)
    logits = [
        jax.jit(lab.xfmr, static_argnames="config", compiler_options=compiler.EXACT | options)(
            loaded.weights, loaded.config, tokens, 0, cache
        )[0]
        for options in ({}, without_fusions())
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_this_compiler_safe_for_this_model(tiny_checkpoint, dtype):
    loaded, tokens = lab.load_model(tiny_checkpoint(dtype), dtype), np.arange(24)[None]
    report = lab.compare_compiler(loaded, tokens)
    assert report.passed and "48 of 48 taps within rounding of the unfused programs'" in report.verdict
    for f, known in ((of_threes, {"0.10.2"}), (of_ones, {"0.10.2", "0.11.2", "0.12.0.1"})):
        report = lab.compare_compiler(loaded, tokens, replace={"rms_norm": f})
        wrong_there = report.first_divergence and report.first_divergence.tap.endswith("norm")
        assert wrong_there if ON_CPU and JAXLIB in known else report.passed


def test_unknown_options_are_left_out(monkeypatch):
    assert not compiler._is_known("xla_no_such_option", "")
    monkeypatch.setattr(compiler, "_is_known", lambda name, value: False)
    without_fusions.cache_clear()
    assert without_fusions() == {}
    without_fusions.cache_clear()


def test_the_canary_bites(fresh, monkeypatch, tiny_checkpoint):
    program, _, shape, dtypes = REPRODUCERS["sum of squares of a product"]
    monkeypatch.setitem(
        REPRODUCERS, "sum of squares of a product", (program, lambda x: (x**2).sum(-1) + 1, shape, dtypes)
    )
    for call in (canary, lambda: lab.generate(lab.load_model(tiny_checkpoint()), [1, 2], 2)):
        with pytest.raises(RuntimeError) as e:
            call()
        for part in (
            JAXLIB,
            jax.devices()[0].platform,
            "issues/39103",
            "in float64: 40000 of 40000 are wrong",
            "XLA_FLAGS",
        ):
            assert part in str(e.value)


def test_the_canary_runs_once(fresh, monkeypatch):
    calls = []
    monkeypatch.setattr(compiler, "wrong", lambda: calls.append(1))
    canary()
    canary()
    assert calls == [1]


@pytest.mark.skipif(not ON_CPU, reason="0.10.2 is wrong on a CPU")
def test_a_bad_release_that_comes_out_right_is_named(fresh, monkeypatch):
    monkeypatch.setattr(jax.lib, "__version__", "0.10.2")
    monkeypatch.setattr(compiler, "wrong", lambda: [])
    with pytest.warns(RuntimeWarning, match="jaxlib 0.10.2 .*XLA_FLAGS"):
        canary()


def test_the_cache_is_quiet(tmp_path):
    """A program loaded from the persistent cache says nothing on stderr, even where jax was there first."""
    code = """if True:
        import jax, jax.numpy as jnp
        jnp.ones(3).sum().block_until_ready()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        from entropix_lab.compiler import use_compilation_cache
        use_compilation_cache()
        jax.jit(lambda x: jnp.sin(x @ x).sum(-1))(jnp.ones((64, 64))).block_until_ready()
        """
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL", "JAX_LOGGING_LEVEL")}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "AOT" not in done.stderr, done.stderr
    assert any(tmp_path.iterdir())
