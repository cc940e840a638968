"""A guide may read parameters of the model, held constant: they are given theta's values, and theta alone owns them.

The oracle is the same guide with the numbers written into it.
"""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import seed

import rws_jax
from rws_jax.programs.held import held

X = jnp.array([0.4, -1.3, 2.0])
THETA = {"mu": jnp.array(0.7), "sigma": jnp.array(1.2)}
PHI = {"a": jnp.array(0.5), "b": jnp.array(-0.1)}


pytestmark = pytest.mark.usefixtures("allow_key_reuse")  # the same key for both guides


def params():
    return numpyro.param("mu", 0.7), numpyro.param("sigma", 1.2, constraint=dist.constraints.positive)


def each_datum(body):
    """Programs of all data, in a plate, or of one datum, for `data_axes`."""

    def program(x):
        if jnp.ndim(x) == 0:
            return body(x)
        with numpyro.plate("data", x.shape[0]):
            return body(x)

    return program


def model(x):
    mu, sigma = params()

    def body(x):
        z = numpyro.sample("z", dist.Normal(mu, sigma))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    each_datum(body)(x)


def guide_of(read):
    """A guide that reads mu and sigma in one way or another."""

    def guide(x):
        mu, sigma = read()
        a, b = numpyro.param("a", 0.5), numpyro.param("b", -0.1)
        draw = lambda x: numpyro.sample("z", dist.Normal(a * x + b + mu, sigma))
        each_datum(draw)(x)

    return guide


def constants(theta=THETA):
    return guide_of(lambda: (theta["mu"], theta["sigma"]))


reads = guide_of(held(params))
LOSSES = [rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss]
EXECUTORS = {
    "vectorized": {},
    "chunks": {"chunk_size": 2},
    "data": {"data_axes": 0},
    "one by one": {"vectorize_particles": False},
}


def gradients(loss, guide, model=model, x=X, compiles=True, **options):
    programs = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
    loss_of = lambda theta, phi: loss(theta, phi, *programs, x, num_particles=4, **options)
    both = jax.value_and_grad(loss_of, argnums=(0, 1))
    return (jax.jit(both) if compiles else both)(THETA, PHI)


def same(tree, other):
    chex.assert_trees_all_close(tree, other, rtol=1e-6, atol=1e-6)


def all_zero(tree):
    return all(bool(jnp.all(leaf == 0.0)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_that_of_a_guide_with_the_numbers_in_it(loss, executor):
    options = EXECUTORS[executor] | {"compiles": executor != "one by one"}
    value, grads = gradients(loss, reads, **options)
    same((value, grads), gradients(loss, constants(), **options))
    owner = loss is rws_jax.wake_theta_loss
    assert all_zero(grads[owner]) and not all_zero(grads[not owner])  # exactly


def branching_model(x):
    mu, sigma = params()
    far = numpyro.sample("far", dist.Bernoulli(0.4), infer={"branching": True})
    z = numpyro.sample("z", dist.Normal(mu, 2 * sigma)) if far else mu
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def branching_guide_of(read):
    def guide(x):
        mu, sigma = read()
        a, b = numpyro.param("a", 0.5), numpyro.param("b", -0.1)
        if numpyro.sample("far", dist.Bernoulli(logits=a * x), infer={"branching": True}):
            numpyro.sample("z", dist.Normal(b + mu, sigma))

    return guide


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_programs_that_branch(loss):
    options = {"model": branching_model, "x": X[2], "compiles": False}
    value, grads = gradients(loss, branching_guide_of(held(params)), **options)
    constant = branching_guide_of(lambda: (THETA["mu"], THETA["sigma"]))
    same((value, grads), gradients(loss, constant, **options))
    owner = loss is rws_jax.wake_theta_loss
    assert all_zero(grads[owner]) and not all_zero(grads[not owner])


MOVED = {"mu": jnp.array(-0.2), "sigma": jnp.array(0.8)}  # theta that is not the initial one


def moved(state):
    return state._replace(theta=type(state.theta)({"mu": MOVED["mu"], "sigma": jnp.log(MOVED["sigma"])}))


def steps(guide, x=X, model=model, function="step", **options):
    options = {"num_particles": 4, "insomnia": 0.5, "theta_optimizer": optax.adam(0.1)} | options
    rws = rws_jax.make_step(model, guide, **options)
    state = moved(rws.init(jax.random.PRNGKey(0), x))
    assert state.theta.keys() == THETA.keys() and state.phi.keys() == PHI.keys()
    return rws, state, rws.step(state, x) if function == "step" else rws.evaluate(state, x)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_is_that_of_a_guide_with_the_numbers_in_it(executor):
    rws, state, (new, info) = steps(reads, **EXECUTORS[executor])
    same((new, info), steps(constants(MOVED), **EXECUTORS[executor])[2])
    assert not bool(new.theta["mu"] == state.theta["mu"])
    if executor == "vectorized":
        expected = {name: float(value) for name, value in (MOVED | PHI).items()}
        assert rws.get_params(state, X) == pytest.approx(expected)


def test_a_step_of_programs_that_branch():
    run = lambda guide: steps(guide, X[2], branching_model, num_particles=8)[2]
    same(run(branching_guide_of(held(params))), run(branching_guide_of(lambda: MOVED.values())))


def test_evaluate_too():
    same(*(steps(guide, function="evaluate")[2] for guide in (reads, constants(MOVED))))
