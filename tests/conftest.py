"""Strict settings for every test: eight virtual devices, no implicit rank promotion, no reuse of keys."""

import os

import jaxlib.version

flags = [
    "--xla_force_host_platform_device_count=8",
    # Machine code is not optimised, which halves the time of compiling. XLA's own passes stay as they are.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if (0, 7) <= jaxlib.version.__version_info__[:2] <= (0, 10):
    # Compiles a third faster; only where it is known to exist, as XLA aborts on a flag that it does not know.
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ.setdefault("MPLBACKEND", "agg")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

import pytest


@pytest.fixture
def allow_key_reuse():
    """For cond, which under vmap runs both branches with one key, and for NumPyro's own subsampling and autoguides."""
    with jax.debug_key_reuse(False):
        yield


@pytest.fixture
def allow_rank_promotion():
    """For networks that add a bias to a batch, as users write them."""
    with jax.numpy_rank_promotion("allow"):
        yield
