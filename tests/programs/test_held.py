"""A guide may read parameters of the model, held constant: they are given theta's values, and theta alone owns them.

The oracle is the same guide with the numbers written into it.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen as nn
from numpyro.contrib.module import flax_module
from numpyro.handlers import seed
from numpyro.infer import SVI, TraceGraph_ELBO

import rws_jax
from rws_jax.programs.held import held
from tests.checks.test_errors import check
from tests.models import rows

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


def slope_and_shift():
    return numpyro.param("a", 0.5), numpyro.param("b", -0.1)


def guide_of(read, own=slope_and_shift):
    """A guide that reads mu and sigma in one way or another."""

    def guide(x):
        (mu, sigma), (a, b) = read(), own()
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


def pairs():
    """Losses and executors; fast are all executors of one loss, and all losses of one executor."""
    for loss, executor in itertools.product(LOSSES, EXECUTORS):
        is_fast = loss is rws_jax.wake_phi_loss or executor == "vectorized"
        yield pytest.param(loss, executor, marks=() if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("loss", "executor"), list(pairs()))
def test_a_loss_is_that_of_a_guide_with_the_numbers_in_it(loss, executor):
    options = EXECUTORS[executor] | {"compiles": executor != "one by one"}
    value, grads = gradients(loss, reads, **options)
    same((value, grads), gradients(loss, constants(), **options))
    owner = loss is rws_jax.wake_theta_loss
    assert all_zero(grads[owner])  # exactly
    assert not all_zero(grads[not owner])


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


@pytest.mark.parametrize("loss", rows(LOSSES, fast=[rws_jax.wake_phi_loss]))
def test_a_loss_of_programs_that_branch(loss):
    options = {"model": branching_model, "x": X[2], "compiles": False}
    value, grads = gradients(loss, branching_guide_of(held(params)), **options)
    constant = branching_guide_of(lambda: (THETA["mu"], THETA["sigma"]))
    same((value, grads), gradients(loss, constant, **options))
    owner = loss is rws_jax.wake_theta_loss
    assert all_zero(grads[owner])
    assert not all_zero(grads[not owner])


MOVED = {"mu": jnp.array(-0.2), "sigma": jnp.array(0.8)}  # theta that is not the initial one


def moved(state):
    return state._replace(theta=type(state.theta)({"mu": MOVED["mu"], "sigma": jnp.log(MOVED["sigma"])}))


def steps(guide, x=X, model=model, function="step", **options):
    options = {"num_particles": 4, "insomnia": 0.5, "theta_optimizer": optax.adam(0.1)} | options
    rws = rws_jax.make_step(model, guide, **options)
    state = moved(rws.init(jax.random.PRNGKey(0), x))
    assert (set(state.theta), set(state.phi)) == (set(THETA), set(PHI))
    return rws, state, rws.step(state, x) if function == "step" else rws.evaluate(state, x)


@pytest.mark.parametrize("executor", rows(EXECUTORS, fast=["vectorized", "data"]))
def test_a_step_is_that_of_a_guide_with_the_numbers_in_it(executor):
    rws, state, (new, info) = steps(reads, **EXECUTORS[executor])
    same((new, info), steps(constants(MOVED), **EXECUTORS[executor])[2])
    assert not bool(new.theta["mu"] == state.theta["mu"])
    if executor == "vectorized":
        expected = {name: float(value) for name, value in (MOVED | PHI).items()}
        assert rws.get_params(state, X) == pytest.approx(expected)


def test_a_step_of_programs_that_branch():
    run = lambda guide: steps(guide, X[2], branching_model)[2]
    same(run(branching_guide_of(held(params))), run(branching_guide_of(lambda: MOVED.values())))


def test_evaluate_too():
    same(*(steps(guide, function="evaluate")[2] for guide in (reads, constants(MOVED))))


POSTERIOR = {
    "importance_sample": lambda guide: rws_jax.importance_sample(*call(guide), num_particles=5),
    "sample_posterior": lambda guide: rws_jax.sample_posterior(*call(guide), num_samples=3, num_particles=5),
    "evaluate": lambda guide: rws_jax.evaluate(*call(guide, x=[(X,)]), num_particles=5).log_evidence,
    "simulation_based_calibration": lambda guide: (
        rws_jax.simulation_based_calibration(*call(guide), num_simulations=10, num_samples=9).ranks
    ),
}


def call(guide, model=model, x=X):
    return jax.random.key(0), MOVED | PHI, model, guide, x


@pytest.mark.parametrize("function", POSTERIOR)
def test_functions_of_trained_programs(function):
    of_guide = POSTERIOR[function]
    same(jax.tree.leaves(of_guide(reads)), jax.tree.leaves(of_guide(constants(MOVED))))


def test_importance_samples_of_programs_that_branch():
    guides = branching_guide_of(held(params)), branching_guide_of(lambda: MOVED.values())
    of_guide = lambda guide: rws_jax.importance_sample(*call(guide, branching_model, X[2]), num_particles=5)
    same(*(of_guide(guide).log_weights for guide in guides))


@pytest.mark.parametrize("insomnia", [0.0, 0.5])
def test_the_loss_under_svi(insomnia):
    elbo = rws_jax.ReweightedWakeSleep(num_particles=4, insomnia=insomnia)
    both = [elbo.loss_and_grads(jax.random.key(0), MOVED | PHI, model, g, X) for g in (reads, constants(MOVED))]
    same(*both)
    svi = SVI(model, reads, numpyro.optim.Adam(0.1), elbo)
    state = svi.init(jax.random.key(0), X)
    assert svi.get_params(state) == pytest.approx({name: float(value) for name, value in (THETA | PHI).items()})
    svi.update(state, X)


def test_numpyros_own_loss_sees_a_constant():
    elbo = TraceGraph_ELBO()
    grads = [
        jax.grad(lambda params, guide=guide: elbo.loss(jax.random.key(0), params, model, guide, X))(MOVED | PHI)
        for guide in (reads, constants(MOVED))
    ]
    same(*grads)


def test_all_that_a_guide_has_may_be_the_models():
    """As of a model that is run as its own guide, before anything of it is proposed."""

    @held
    def guide(x):
        mu, sigma = params()
        each_datum(lambda x: numpyro.sample("z", dist.Normal(mu, sigma)))(x)

    rws = rws_jax.make_step(model, guide, num_particles=4)
    state, info = rws.step(rws.init(jax.random.key(0), X), X)
    assert not state.phi
    assert info.phi_grad_norm is None
    assert bool(info.finite)
    assert info.ess_mean.shape == ()


@pytest.mark.usefixtures("allow_rank_promotion")  # flax adds biases to batches
def test_a_network_of_the_model():
    """Trees of arrays, under the name that NumPyro gives them, with a key where initial values are random."""
    layer = lambda: flax_module("net", nn.Dense(1), input_shape=(1,))

    def model(x):
        net = layer()
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(net(z[:, None])[:, 0], 1.0), obs=x)

    def guide_of(read):
        def guide(x):
            net = read()
            with numpyro.plate("data", 3):
                numpyro.sample("z", dist.Normal(net(numpyro.param("a", 0.5) * x[:, None])[:, 0], 1.0))

        return guide

    rws = rws_jax.make_step(model, guide_of(held(layer)), num_particles=4, insomnia=0.5)
    state = rws.init(jax.random.PRNGKey(0), X)
    assert (set(state.theta), set(state.phi)) == ({"net$params"}, {"a"})
    net = rws.get_params(state, X)["net$params"]
    constant = guide_of(lambda: lambda x: nn.Dense(1).apply({"params": net}, x))
    same(rws.step(state, X), rws_jax.make_step(model, constant, num_particles=4, insomnia=0.5).step(state, X))


def test_keys_and_integers_are_left_alone():
    values = {"key": jax.random.key(0), "raw": jax.random.PRNGKey(0), "count": 3, "number": jnp.ones(2)}
    found = numpyro.handlers.substitute(held(lambda: numpyro.param("tree")), {"tree": values})()
    assert found["key"] is values["key"]
    assert found["count"] == 3
    same(found["raw"], values["raw"])
    same(found["number"], values["number"])


def test_shared_parameters_beside_held_ones():
    """Both losses train what is shared; what is held stays the model's."""

    def guide_of(read):
        def guide(x):
            mu, shared = read(), numpyro.param("sigma", 1.2, constraint=dist.constraints.positive)
            each_datum(lambda x: numpyro.sample("z", dist.Normal(mu + numpyro.param("a", 0.5) * x, shared)))(x)

        return guide

    def run(read):
        rws = rws_jax.make_step(model, guide_of(read), num_particles=4, insomnia=0.5, shared_params=True)
        state = moved(rws.init(jax.random.PRNGKey(0), X))
        assert set(state.phi) == {"a"}
        return rws.step(state, X)

    same(run(lambda: held(numpyro.param)("mu", 0.7)), run(lambda: MOVED["mu"]))


def test_supports_that_move_with_what_is_held():
    """They are the model's, and no fault of phi: an end of an interval that is the guide's own is refused."""

    def model(x):
        z = numpyro.sample("z", dist.Uniform(0.0, high()))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    high = lambda: numpyro.param("high", 2.0, constraint=dist.constraints.positive)

    def guide_of(read):
        return lambda x: numpyro.sample("z", dist.Uniform(0.0 * numpyro.param("a", 0.5), read()))

    init = lambda guide: rws_jax.make_step(model, guide, num_particles=4).init(jax.random.key(0), 0.3)
    assert set(init(guide_of(held(high))).theta) == {"high"}
    with pytest.raises(ValueError, match="support") as error:
        init(guide_of(lambda: 2.0 * numpyro.param("own", 2.0)))
    check(error, ValueError, "'z'")


def test_a_defensive_guide_holds_nothing():
    u = guide_of(held(params), own=lambda: (0.0, 0.0))
    with pytest.raises(ValueError, match="the defensive guide has parameters"):
        steps(reads, insomnia=1.0, defensive=0.3, defensive_guide=u)


def test_training_goes_on_from_where_it_was():
    rws, _, (state, _) = steps(reads)
    leaves, structure = jax.tree.flatten(state)
    restored = jax.tree.unflatten(structure, [jnp.array(leaf) for leaf in leaves])
    again = rws_jax.make_step(model, reads, num_particles=4, insomnia=0.5, theta_optimizer=optax.adam(0.1))
    same(again.step(restored, X), rws.step(state, X))


def test_they_are_described_as_the_models():
    text = rws_jax.describe(model, reads, X)
    table = [line.split() for line in text.split("parameters", 1)[1].splitlines()]
    assert [(row[0], row[-1]) for row in table[1:] if len(row) > 3] == [
        ("mu", "model"),
        ("sigma", "model"),
        ("a", "guide"),
        ("b", "guide"),
    ]


# Errors

NAMED_ALIKE = guide_of(params)


def of_positive(constraint, initial=1.2):
    return guide_of(held(lambda: (0.0, numpyro.param("sigma", initial, constraint=constraint))))


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        pytest.param(NAMED_ALIKE, ("['mu', 'sigma'] occur in both", "shared_params=True"), id="not held"),
        pytest.param(guide_of(held(lambda: (0.0, numpyro.param("other", 1.0)))), ("'other'", "held"), id="no one's"),
        pytest.param(of_positive(dist.constraints.real), ("'sigma' differs", "Positive", "Real"), id="constraint"),
        pytest.param(
            of_positive(dist.constraints.positive, jnp.ones(3)), ("'sigma' differs", "shape ()", "(3,)"), id="shape"
        ),
    ],
)
def test_what_does_not_fit_is_an_error_at_init(guide, words):
    with pytest.raises(ValueError, match=r"param site") as error:
        rws_jax.make_step(model, guide, num_particles=4).init(jax.random.key(0), X)
    check(error, ValueError, *words)
    if "shape ()" in words:
        return  # as `SVI` initialises it, a parameter has one value for both programs
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), rws_jax.ReweightedWakeSleep(num_particles=4))
    with pytest.raises(ValueError, match=r"param site") as error:
        svi.update(svi.init(jax.random.key(0), X), X)
    check(error, ValueError, *words)


def test_a_model_holds_nothing():
    holding = lambda x: held(model)(x)
    with pytest.raises(ValueError, match="of the model are held") as error:
        rws_jax.make_step(holding, constants(), num_particles=4).init(jax.random.key(0), X)
    check(error, ValueError, "['mu', 'sigma']")


def test_a_guides_own_parameter_is_not_taken_from_theta():
    with pytest.raises(ValueError, match="'mu' of the guide has no value in phi"):
        gradients(rws_jax.wake_phi_loss, NAMED_ALIKE)


def test_a_held_parameter_is_not_taken_from_phi():
    guide = guide_of(held(lambda: (numpyro.param("a", 0.0), 1.0)))
    with pytest.raises(ValueError, match="'a', which the guide holds constant, is none of the model's") as error:
        gradients(rws_jax.wake_phi_loss, guide)
    check(error, ValueError, "['mu', 'sigma']")
