"""Strict settings for every test: eight virtual devices, no implicit rank promotion, no reuse of keys."""

import argparse
import atexit
import os
import shutil
import tempfile

import jaxlib.version

flags = [
    "--xla_force_host_platform_device_count=8",
    # Machine code is not optimised, which halves the time of compiling. XLA's own passes stay as they are.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if (0, 7) <= jaxlib.version.__version_info__[:2] <= (0, 10):
    # Compile a third and a tenth faster; only where they are known to exist, as XLA aborts on a flag that it does not.
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
# Workers inherit the flags of the process that starts them.
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*os.environ.get("XLA_FLAGS", "").split(), *flags]))

# What one test has compiled, others load: those of all workers, of processes that tests start, and of later runs where
# the environment names a directory to keep. Otherwise it goes when the tests end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rws_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("MPLBACKEND", "agg")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--every",
        type=_positive,
        default=1,
        metavar="N",
        help="of each slow test run the first, the (N+1)th, ... of its parameters only",
    )


def _positive(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def pytest_collection_modifyitems(config, items):
    """Leave out what `--every` does not ask for; fast tests and those without parameters are always run."""
    places, kept, left_out = {}, [], []
    for item in items:
        place = 0
        if item.get_closest_marker("slow"):
            family = item.nodeid.split("[")[0]
            place = places[family] = places.get(family, -1) + 1
        (left_out if place % config.getoption("every") else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


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
