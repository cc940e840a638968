"""Functions of single sites, compiled where particles run un-jitted."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from rws_jax.core.site_functions import at_site, compiled_sites

pytestmark = pytest.mark.usefixtures("allow_key_reuse")


def counted(function):
    """A function, how often Python has run it, and with what."""
    runs = []

    def run(*args):
        runs.append(args)
        return function(*args)

    return at_site(run), runs


def test_distributions_of_one_kind_are_compiled_once():
    log_prob, runs = counted(lambda fn, value: fn.log_prob(value))
    with compiled_sites():
        found = [log_prob(dist.Normal(loc, 2.0), 0.5) for loc in jnp.arange(4.0)]
    np.testing.assert_allclose(found, [dist.Normal(loc, 2.0).log_prob(0.5) for loc in range(4)], rtol=1e-6)
    assert len(runs) == 2  # the first as it is; the second compiles


def test_nothing_is_compiled_elsewhere():
    log_prob, runs = counted(lambda fn, value: fn.log_prob(value))
    for _ in range(3):
        log_prob(dist.Normal(0.0, 2.0), 0.5)
    assert len(runs) == 3


def test_what_python_computes_with_is_called_as_it_is():
    function, runs = counted(lambda x: x + 1.0 if x > 0.0 else x)
    with compiled_sites():
        assert [function(jnp.array(value)).item() for value in (1.0, 2.0, 3.0, -1.0)] == [2.0, 3.0, 4.0, -1.0]
    assert len(runs) == 5  # one of them in vain
    assert not isinstance(runs[-1][0], jax.core.Tracer)


def test_values_are_not_validated_within():
    with compiled_sites():
        dist.Normal(0.0, -1.0)
    with pytest.raises(ValueError, match="invalid scale"):
        dist.Normal(0.0, -1.0)
