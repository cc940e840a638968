"""The pages are run as doctests."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _allow_key_reuse():
    """For cond, which under vmap runs both branches with one key."""
    with jax.debug_key_reuse(False):
        yield
