"""Guides of programs whose path depends on what is drawn: one set of numbers, however they run."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import rws_jax
from tests.guides.cases import CASES, SMALL, compiled, weights_of
from tests.posterior.exact import log_normal

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")


def test_first_weights_hold_every_path():
    case = CASES["branching"]()
    tree = weights_of(rws_jax.compile_guide(case.model, **SMALL), case.args[0][0])["guide"]
    assert set(tree["proposals"]) == {"k", "a", "b"}
    assert set(tree["latents"]) == {"k", "a"}  # b is the last one wherever it is


@pytest.mark.slow
def test_paths_and_one_by_one_are_one_set_of_numbers():
    case = CASES["branching"]()
    guide, params = compiled(case)
    run = lambda **options: rws_jax.importance_sample(
        jax.random.key(1), params, case.model, guide, *case.args, num_particles=5, data_axes=0, **options
    )
    by_path, one_by_one = run(), run(vectorize_particles=False)
    chex.assert_trees_all_close(by_path.samples, one_by_one.samples, rtol=1e-5)
    chex.assert_trees_all_close(by_path.log_weights, one_by_one.log_weights, rtol=1e-4, atol=1e-5)


def rare(x):
    """An address that is drawn once in 10^5 runs of the model, and always when asked for."""
    k = numpyro.sample("k", dist.Bernoulli(1e-5), infer={"branching": True})
    loc = numpyro.sample("b", dist.Normal(3.0, 1.0)) if k else 0.0
    numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_an_address_that_no_dream_has_met_keeps_its_prior_and_says_so_once():
    guide, x = rws_jax.compile_guide(rare, **SMALL), jnp.array([3.0])
    params = weights_of(guide, x[0])
    assert set(params["guide"]["proposals"]) == {"k"}
    outputs = params["guide"]["proposals"]["k"]["outputs"]
    outputs["bias"] = outputs["bias"] + 11.5  # its odds are now about one to one
    run = lambda number: rws_jax.importance_sample(
        jax.random.key(number), params, rare, guide, x, num_particles=60, data_axes=0
    )
    with pytest.warns(UserWarning, match=r"(?s)'?b'?.*prior") as caught:
        weighted = run(1)
    assert len([w for w in caught if "prior" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weighted = run(2)
    there = weighted.present["b"][:, 0]
    assert 10 < there.sum() < 50
    loc = np.where(there, weighted.samples["b"][:, 0], 0.0)
    # b has its prior in both programs, so that the weight is that of k and of x alone.
    log_w = np.asarray(weighted.log_weights[:, 0]) - log_normal(3.0, loc, 1.0)
    assert np.ptp(log_w[there]) < 1e-3
    assert np.ptp(log_w[~there]) < 1e-3
    odds = 1e-5 * np.exp(-log_w[there][0]), (1 - 1e-5) * np.exp(-log_w[~there][0])
    np.testing.assert_allclose(sum(odds), 1.0, rtol=1e-3)  # q(k = 1) + q(k = 0)


@pytest.mark.slow
def test_a_state_goes_on_with_a_guide_that_is_compiled_anew():
    case = CASES["branching"]()
    options = {"phi_optimizer": optax.adam(0.01), "insomnia": 0.5, "num_particles": 2, "data_axes": 0}
    make = lambda: rws_jax.make_step(case.model, rws_jax.compile_guide(case.model, **SMALL), **options)
    first = make()
    state, _ = first.step(first.init(jax.random.key(0), *case.args), *case.args)
    expected, _ = first.step(jax.tree.map(jnp.array, state), *case.args)
    resumed, _ = make().step(jax.tree.map(jnp.array, state), *case.args)
    chex.assert_trees_all_close(resumed.phi, expected.phi, rtol=1e-5)
