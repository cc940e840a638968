"""Guides compiled from models as users write them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.handlers import seed, trace

from rws_jax import compile_guide, make_step

Y = jnp.array([0.3, -1.2, 2.0])


def sites_of(program) -> dict[str, Any]:
    """The messages of one run."""
    return trace(seed(program, 0)).get_trace(Y)


def test_integers_of_few_values_have_proposals_in_a_plate():
    def model(y):
        with numpyro.plate("items", 3):
            c = numpyro.sample("c", dist.DiscreteUniform(0, 3))
            numpyro.sample("y", dist.Normal(c, 1.0), obs=y)

    site = sites_of(compile_guide(model, hidden=4))["c"]
    uniform = site["fn"].log_prob(jnp.arange(4)[:, None])
    np.testing.assert_allclose(uniform, jnp.full((4, 3), -jnp.log(4.0)), atol=0.1)
    np.testing.assert_allclose(jnp.exp(uniform).sum(axis=0), jnp.ones(3), rtol=1e-5)


def weights_without_a_plate(y):
    w = jnp.asarray(numpyro.sample("w", dist.Normal(0.0, jnp.array([4.0, 1.0]))))
    layer = jnp.asarray(numpyro.sample("layer", dist.Normal(jnp.zeros((2, 2)), 1.0)))
    shares = jnp.asarray(numpyro.sample("shares", dist.Dirichlet(jnp.ones((2, 3)))))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(w.sum() + layer.sum() + shares[:, 0].sum(), 1.0), obs=y)


def test_a_batch_without_a_plate_has_the_shapes_of_the_model_and_one_joint_density():
    guide = compile_guide(weights_without_a_plate, hidden=4)
    sites, priors = (sites_of(fn) for fn in (guide, weights_without_a_plate))
    for name in ("w", "layer", "shares"):
        fn, prior = sites[name]["fn"], priors[name]["fn"]
        assert (fn.batch_shape, fn.event_shape) == (prior.batch_shape, prior.event_shape)
        value = sites[name]["value"]
        np.testing.assert_allclose(fn.log_prob(value).sum(), fn.joint.log_prob(value), rtol=1e-5)
    tree = sites["guide"]["value"]["proposals"]["w"]["outputs"]
    assert tree["weights"].shape[-1] == 5 + 2 * 4 * 2 + 4  # weights; means and scales; a slope for each component


def test_a_batch_without_a_plate_trains():
    guide = compile_guide(weights_without_a_plate, hidden=4)
    adam = optax.adam(1e-2)
    rws = make_step(weights_without_a_plate, guide, phi_optimizer=adam, num_particles=3, insomnia=0.5)
    _, info = rws.step(rws.init(jax.random.key(0), Y), Y)
    assert info.finite
