"""The compiler on trial: small programs that releases of jaxlib get wrong, and programs compiled without fusions.

XLA hands parts of a program on a CPU to a library (YNNPACK) as one fusion. jaxlib 0.10.2 is refused for what that does
to its sums (jax issue 39103). Every release from 0.9.2 to 0.12.0.1 gets some program wrong that way, though none that
the forward is made of, and all of them get each of these right without the fusions.
"""

import functools
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np

# Meta's code runs in torch beside JAX, which otherwise takes three quarters of a GPU at its start. Read when JAX first
# computes.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# For jit's compiler_options: XLA may keep more precision between fused operations than the dtype has, which hides
# bfloat16's roundings.
EXACT = {"xla_allow_excess_precision": False}

MEND = (
    'Install another release, pip install "jax!=0.10.2"; or set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= '
    "(nothing after the =) in the environment before Python starts"
)
_each = lambda f: jax.vmap(lambda row: f(np.roll(np.eye(3, dtype=row.dtype), 1, 0) @ row))

# name: (program, the same in NumPy, shape of its argument, dtypes). Arguments are integers of at most 3, which TF32 and
# bfloat16 hold exactly. 0.10.2 goes wrong from a row on that lies 128 KiB into the result; other releases are right.
REPRODUCERS = {
    "sum of squares of a product": (
        _each(lambda y: jnp.sum(y**2)),
        lambda x: (x**2).sum(-1),
        (40_000, 3),
        ("float32", "float64"),
    ),
    "inverse RMS of a product": (
        _each(lambda y: jax.lax.rsqrt(jnp.mean(y**2) + 1)),
        lambda x: 1 / np.sqrt((x**2).mean(-1) + 1),
        (40_000, 3),
        ("float32", "float64"),
    ),
    "maximum of a product": (_each(jnp.max), lambda x: x.max(-1), (40_000, 3), ("float64",)),
}
# Wrong in releases that are not refused: the first in 0.9.2 to 0.10.2, the second in 0.10.0 and 0.10.1, the third in
# 0.10.2, 0.11.2 and 0.12.0.1, where larger ones give another result each time.
ELSEWHERE = {
    "sum of a product": (_each(jnp.sum), lambda x: x.sum(-1), (40_000, 3), ("float32",)),
    "sum of sums": (
        lambda x: x.sum(-1).reshape(-1, 576).sum(-1),
        lambda x: x.reshape(400, -1).sum(-1),
        (3600, 64, 8),
        ("float32",),
    ),
    "product with a constant matrix": (
        lambda x: jnp.sum((x @ jnp.ones_like(x)) * x, -1),
        lambda x: x.sum(-1) ** 2,
        (64, 16, 16),
        ("float32", "float64"),
    ),
}


def wrong(programs=REPRODUCERS, options=None) -> list[str]:
    """What these programs get wrong on the default device, in words; options are compiler_options of jax.jit."""
    found = []
    for name, (program, of_numpy, shape, dtypes) in programs.items():
        x = np.arange(np.prod(shape)).reshape(shape) * 5 % 11 % 7 - 3
        right = of_numpy(x)
        for dtype in dtypes:
            with jax.enable_x64(dtype == "float64"):
                out = np.asarray(jax.jit(program, compiler_options=options)(x.astype(dtype)), np.float64)
            bad = np.flatnonzero(~(abs(out - right) <= 1e-3 * abs(right).max()))
            if bad.size:
                at = f"at {bad[0]} it computed {out.flat[bad[0]]:g}, and {right.flat[bad[0]]:g} is right"
                found.append(f"{name} in {dtype}: {bad.size} of {out.size} are wrong, {at}")
    return found


@functools.cache
def canary():
    """Raise RuntimeError where this jaxlib gets REPRODUCERS wrong. What passes is not run again in this process."""
    jaxlib, device = jax.lib.__version__, jax.devices()[0]
    if found := wrong():
        raise RuntimeError(
            f"jaxlib {jaxlib} computes wrong numbers on {device.platform} {device.device_kind} "
            f"(https://github.com/jax-ml/jax/issues/39103): {'; '.join(found)}. {MEND}"
        )
    if jaxlib == "0.10.2" and device.platform == "cpu":
        warnings.warn(
            "jaxlib 0.10.2 computes wrong numbers (https://github.com/jax-ml/jax/issues/39103) where its fusions are "
            "on. The programs known to go wrong come out right here: results depend on XLA_FLAGS staying as it is",
            RuntimeWarning,
            stacklevel=2,
        )


@functools.cache
def without_fusions() -> dict:
    """The compiler_options that switch off XLA's optional fusions on the default backend, as far as it knows them.

    On a CPU those of YNNPACK (known from 0.9.2 on, not by 0.8.0). On a GPU Triton's and cuDNN's, which was not tried.
    """
    gpu = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_cudnn_gemm_fusion_level": 0}
    options = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": ""}, "gpu": gpu}.get(jax.default_backend(), {})
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name, value) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value})(0)
    except jax.errors.JaxRuntimeError as e:
        if "No such compile option" not in str(e):
            raise
        return False
    return True


def use_compilation_cache():
    """Turn on JAX's persistent compilation cache, unless one is set already."""
    import platformdirs

    # On a CPU these print errors on stderr for each program from the cache, because the compiler's own preferences are
    # listed as features of the machine. TF_CPP_MIN_LOG_LEVEL (to which jax gives 1) is read when jax is imported; this
    # works at any time.
    noisy = jax.lib.__version__ in ("0.9.2", "0.10.0", "0.10.1")
    unset = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1" and jax.config.jax_logging_level in (None, "NOTSET")
    if noisy and unset:
        jax.config.update("jax_logging_level", "CRITICAL")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("entropix_lab") / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
