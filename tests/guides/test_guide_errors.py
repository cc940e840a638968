"""Models and arguments that no guide can be compiled for: each message names the site or argument, and the remedy."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, substitute, trace

import rws_jax
from tests.checks.test_errors import check
from tests.guides.cases import SMALL, weights_of

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")

X = jnp.array([0.5, -1.2, 0.3])


def with_prior(fn):
    def model(x):
        z = numpyro.sample("z", fn)
        numpyro.sample("x", dist.Normal(z, 1.0).expand(jnp.shape(x)).to_event(jnp.ndim(x)), obs=x)

    return model


def mutable(x):
    numpyro.primitives.mutable("state", 0.0)
    with_prior(dist.Normal(0.0, 1.0))(x)


def own_elements(x):
    """A plate of latents which the data do not have; it has no size but that of the argument."""
    with numpyro.plate("latents", 2 * len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)


BAD = {
    "delta": (with_prior(dist.Delta(0.0)), X, ValueError, ("'z'", "Delta", "deterministic")),
    "improper": (
        with_prior(dist.ImproperUniform(dist.constraints.real, (), ())),
        X,
        ValueError,
        ("'z'", "improper", "proper prior"),
    ),
    "mutable": (mutable, X, ValueError, ("'state'", "mutable")),
    "text": (with_prior(dist.Normal(0.0, 1.0)), "text", TypeError, ("'x'", "embed=")),
    "array of text": (with_prior(dist.Normal(0.0, 1.0)), np.array(["a", "b"]), TypeError, ("'x'", "dtype")),
    "ragged": (with_prior(dist.Normal(0.0, 1.0)), [[0.1], [0.2, 0.3]], TypeError, ("'x'", "lengths", "mask")),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compiled_is_said(name):
    model, x, kind, words = BAD[name]
    with pytest.raises(kind) as error:
        weights_of(rws_jax.compile_guide(model, **SMALL), x)
    check(error, kind, *words)


def test_elements_with_outputs_of_their_own_cannot_become_more():
    guide = rws_jax.compile_guide(own_elements, **SMALL)
    numbers = weights_of(guide, X)
    with pytest.raises(ValueError, match="'z'") as error, seed(rng_seed=0), substitute(data=numbers):
        trace(guide).get_trace(jnp.ones(4))
    check(error, ValueError, "'z'", "'latents'", "data_plates")


def test_rows_that_no_plate_has_are_said():
    def model(x, y):
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    guide = rws_jax.compile_guide(model, **SMALL)
    numbers = weights_of(guide, X, X)
    with pytest.raises(ValueError, match="'x'") as error, seed(rng_seed=0), substitute(data=numbers):
        trace(guide).get_trace(jnp.ones(4), X)
    check(error, ValueError, "'x'", "'data'", "data_plates")
