"""Nested particles in every way of running: the same numbers, once for what does not depend on local particles."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.handlers import condition, seed
from numpyro.infer import SVI

import rws_jax
from rws_jax.estimators import score
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.nested import NestedParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.data import Data
from rws_jax.execution.vectorized import Vectorized
from tests import models
from tests.estimators.nested_cases import CASES, PARAMS, THETA
from tests.oracles import programs_of, seeded

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
slow = lambda *rows: [pytest.param(*row, marks=pytest.mark.slow) for row in rows]
close = partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-5)
NESTED = {"num_particles": 4, "num_local_particles": 3}


def losses_of(case, params, **options):
    """Values and gradients of both losses."""

    def losses(params):
        programs_ = seeded(case.model, case.guide)
        options_ = {**NESTED, **options, "data_axes": case.data_axes}
        phi = rws_jax.wake_phi_loss(*params, *programs_, case.x, **options_)
        options_.pop("control_variate", None)
        return rws_jax.wake_theta_loss(*params, *programs_, case.x, **options_), phi

    return jax.jit(lambda params: (losses(params), jax.jacrev(losses)(params)))(params)


@pytest.mark.parametrize("name", models.rows(models.BY_HAND, fast=["global latent"]))
def test_one_local_particle_is_the_program_of_today(name):
    """The very same operations, whatever `local_numbers` is: so also the same numbers."""
    by_hand = models.BY_HAND[name]
    params = models.BY_HAND_THETA, models.BY_HAND_PHI

    def jaxpr_of(**options):
        def losses(params):
            programs_ = seeded(by_hand.model, by_hand.guide)
            options_ = {"num_particles": 3, **options}
            theta = rws_jax.wake_theta_loss(*params, *programs_, by_hand.x, **options_)
            return theta, rws_jax.wake_phi_loss(*params, *programs_, by_hand.x, **options_)

        return str(jax.make_jaxpr(lambda params: (losses(params), jax.jacrev(losses)(params)))(params))

    jaxpr_of()  # how much of a jaxpr is printed by name depends on what has been traced before
    plain = jaxpr_of()
    assert jaxpr_of(num_local_particles=1, local_numbers="independent") == plain
    assert len(plain) > 1000


# In the body of a scan local particles have keys of their own.
OUTSIDE_OF_SCAN = [name for name in CASES if "scan" not in name]


@pytest.mark.parametrize("name", models.rows(OUTSIDE_OF_SCAN, fast=[]))
def test_nested_particles_with_one_local_each_are_ordinary_particles(name):
    """By the nested path, which options take from two on: the same draws, and one weight for all of them."""
    case, params = CASES[name], PARAMS[name]

    def losses(params):
        programs_ = programs_of(case.model, case.guide, *params, case.x)
        particle = NestedParticle(WakeParticle(), 1, common=False)
        scored = Vectorized(Data(case.data_axes))(particle, programs_, NESTED["num_particles"])
        return theta_loss(scored), score.plain_phi_loss(scored)

    found = jax.jit(lambda params: (losses(params), jax.jacrev(losses)(params)))(params)
    close(found, losses_of(case, params, num_local_particles=1, control_variate=False))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        *slow(
            ("units on the left", "common"),
            ("three levels", "independent"),
            ("scan", "common"),
            ("data axis", "common"),
        ),
    ],
)
def test_numbers_do_not_depend_on_chunks_or_devices(name, numbers):
    """Chunks of 3 and 1; two particles on each of two devices."""
    case, params = CASES[name], PARAMS[name]
    mesh = Mesh(np.array(jax.devices()[:2]), ("particles",))
    expected = losses_of(case, params, local_numbers=numbers)
    close(losses_of(case, params, local_numbers=numbers, chunk_size=3), expected)
    sharding = NamedSharding(mesh, PartitionSpec("particles"))
    close(losses_of(case, params, local_numbers=numbers, particle_sharding=sharding), expected)


STEPS = {
    "as it is": {},
    "independent": {"local_numbers": "independent"},
    "plain": {"control_variate": False},
    "two steps of phi": {"phi_steps": 2},
    "chunks": {"chunk_size": 3},
    "both": {"insomnia": 0.5, "num_sleep_particles": 4},
}


def train(num_steps=3, name="units on the left", **options):
    case, sgd = CASES[name], optax.sgd(0.02)
    options = {"theta_optimizer": sgd, "phi_optimizer": sgd, **NESTED, **options, "data_axes": case.data_axes}
    rws = rws_jax.make_step(case.model, case.guide, **options)
    state = rws.init(jax.random.key(0), case.x)
    state, infos = jax.lax.scan(lambda state, _: rws.step(state, case.x), state, length=num_steps)
    return (state.theta, state.phi), infos


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_steps_run_with_every_option_and_over_devices(name):
    mesh = Mesh(np.array(jax.devices()[:4]), ("particles",))
    params, infos = train(**STEPS[name])
    assert jnp.all(infos.finite)
    others = {"particle_sharding": NamedSharding(mesh, PartitionSpec("particles"))} if name != "chunks" else {}
    close(train(**{**STEPS[name], "chunk_size": None, **others}), (params, infos))


def recorded(**options):
    """An optimizer of the guide that keeps the gradient, and one step with it."""
    case = CASES["units on the left"]
    keep = optax.GradientTransformation(lambda params: params, lambda grads, state, params=None: (grads, grads))
    rws = rws_jax.make_step(case.model, case.guide, theta_optimizer=keep, phi_optimizer=keep, **options)
    state = rws.init(jax.random.key(0), case.x)
    return rws.step(state, case.x)


@pytest.mark.slow
def test_sleep_is_as_it_is_without():
    """Dreams have no weights: with insomnia=0 a step is the same; with 0.5 its loss of sleep is."""
    plain, nested = recorded(insomnia=0.0), recorded(insomnia=0.0, num_local_particles=5)
    close(nested[1].sleep_phi_loss, plain[1].sleep_phi_loss)
    close(nested[0].phi_opt_state, plain[0].phi_opt_state)
    half, nested_half = (recorded(insomnia=0.5, num_particles=4, num_local_particles=num) for num in (1, 5))
    assert half[1].sleep_phi_loss == nested_half[1].sleep_phi_loss
    assert half[1].wake_phi_loss != nested_half[1].wake_phi_loss


@pytest.mark.slow
def test_svi_takes_the_same_options():
    case = CASES["siblings"]
    nested = rws_jax.ReweightedWakeSleep(**NESTED, local_numbers="independent")
    svi = SVI(case.model, case.guide, optax.sgd(0.05), loss=nested)
    state = svi.init(jax.random.key(0), case.x)
    start, (state, loss) = svi.get_params(state), svi.update(state, case.x)
    plain = SVI(case.model, case.guide, optax.sgd(0.05), loss=rws_jax.ReweightedWakeSleep(num_particles=4))
    plain_loss = plain.update(plain.init(jax.random.key(0), case.x), case.x)[1]
    assert jnp.isfinite(loss)
    assert loss != plain_loss
    assert all(value != start[name] for name, value in svi.get_params(state).items())


@pytest.mark.slow
def test_seeds_can_be_mapped_over():
    case, params = CASES["siblings"], PARAMS["siblings"]

    def of_seed(key):
        programs_ = seed(case.model, key), seed(case.guide, jax.random.fold_in(key, 1))
        return jax.value_and_grad(lambda phi: rws_jax.wake_phi_loss(THETA, phi, *programs_, case.x, **NESTED))(
            params[1]
        )

    keys = jax.random.split(jax.random.key(0), 3)
    one_by_one = [jax.jit(of_seed)(key) for key in keys]
    close(jax.vmap(of_seed)(keys), jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one))


# What a step costs


def flops_of(model, guide, num, num_local, numbers):
    def losses(params):
        options = {"num_particles": num, "num_local_particles": num_local, "local_numbers": numbers}
        programs_ = seeded(model, guide)
        theta = rws_jax.wake_theta_loss({}, params, *programs_, **options)
        return theta + rws_jax.wake_phi_loss({}, params, *programs_, **options)

    params = {"a": jnp.array(0.1), "b": jnp.array(0.2)}
    return jax.jit(jax.value_and_grad(losses)).lower(params).compile().cost_analysis()["flops"]


SIZE = 60
MATRIX = jnp.eye(SIZE)


def heavy(x):
    """A number that costs 2 SIZE^3 operations."""
    return jnp.tanh(jnp.tanh(MATRIX * x) @ jnp.tanh(MATRIX + x))[0, 0]


def costly(*, in_global, in_local):
    def model():
        g = numpyro.sample("g", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(heavy(g) if in_global else g, 1.0), obs=0.5)
        with numpyro.plate("elements", 2):
            z = numpyro.sample("z", dist.Normal(g, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.zeros(2))

    def guide():
        numpyro.sample("g", dist.Normal(numpyro.param("a", 0.1), 1.0))
        with numpyro.plate("elements", 2):
            z = numpyro.sample("z", dist.Normal(numpyro.param("b", 0.2), 1.0))
            numpyro.sample("u", dist.Normal(heavy(z[0]) if in_local else z[0], 1.0), infer={"is_auxiliary": True})

    return model, guide


@pytest.mark.parametrize("numbers", models.rows(["common", "independent"], fast=["common"]))
def test_what_is_outside_of_a_plate_is_computed_once_for_its_particle(numbers):
    """The cost of the global's part grows with K and not with L."""
    programs_ = costly(in_global=True, in_local=False)
    few, many = (flops_of(*programs_, 3, num_local, numbers) for num_local in (2, 20))
    assert few > 3 * 2 * SIZE**3
    assert many < 1.1 * few


@pytest.mark.slow
def test_a_mean_field_guide_of_locals_is_run_once_for_all_globals():
    """With common numbers its cost grows with L and not with K; with independent ones it does with both."""
    programs_ = costly(in_global=False, in_local=True)
    few, many = (flops_of(*programs_, num, 3, "common") for num in (2, 20))
    assert few > 3 * 2 * SIZE**3
    assert many < 1.1 * few
    assert flops_of(*programs_, 20, 3, "independent") > 8 * few


@pytest.mark.parametrize("numbers", ["common", "independent"])
def test_data_that_are_conditioned_are_those_that_are_observed(numbers):
    """Locals do not depend on the number of the particle, if numbers are common, and are no constants for that."""

    def model(x):
        numpyro.sample("g", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("g", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("a", 0.3), 1.0))

    x = jnp.array([0.3, -1.0, 2.0])
    given = condition(lambda x: model(None), {"x": x})
    losses = [
        rws_jax.wake_theta_loss({}, {"a": 0.3}, *seeded(program, guide), x, **NESTED, local_numbers=numbers)
        for program in (model, given)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
