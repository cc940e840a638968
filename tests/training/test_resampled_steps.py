"""Particles that are resampled in time, where users call for them: steps, SVI, trained guides, predictions."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI
from numpyro.primitives import mutable

import rws_jax
from tests.core.test_support import enable_x64

X = jnp.array([0.4, -0.3, 1.1, 0.6])
SERIES = jnp.stack([X, 2.0 * X, -X])
HOW = {"resample": "systematic", "resample_below": 0.9, "num_particles": 8}


def model(x):
    a = numpyro.param("a", 0.9)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(a * z, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, 0.0, x)


def guide(x):
    b, c = numpyro.param("b", 0.5), numpyro.param("c", 0.2)
    scan(lambda h, x: (numpyro.sample("z", dist.Normal(b * x + c * h, 0.8)), None), 0.0, x)


def made(model=model, guide=guide, **options):
    optimizers = {"theta_optimizer": optax.sgd(0.01), "phi_optimizer": optax.sgd(0.01)}
    return rws_jax.make_step(model, guide, **optimizers, **(HOW | options))


def stepped(x=X, num=1, model=model, guide=guide, **options):
    """The state after so many steps, and the last info."""
    rws = made(model, guide, **options)
    state, info = rws.init(jax.random.key(0), x), None
    for _ in range(num):
        state, info = rws.step(state, x)
    return state, info


plain = cache(stepped)


def assert_same(found, expected, rtol=1e-5):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not is_key(own):
            np.testing.assert_allclose(own, other, rtol=rtol, atol=1e-6)


@pytest.mark.floors
def test_a_step_is_traced_once_and_leaves_no_arrays_behind():
    num_runs = 0

    def counted(x):
        nonlocal num_runs
        num_runs += 1
        model(x)

    rws = made(counted)
    state = rws.init(jax.random.key(0), X)
    state, info = rws.step(state, X)
    after_one, num_arrays = num_runs, len(jax.live_arrays())
    assert 1 < info.ess_mean < 8
    for _ in range(5):
        state, info = rws.step(state, X)
    assert num_runs == after_one
    assert len(jax.live_arrays()) == num_arrays


@pytest.mark.slow
def test_control_variates_insomnia_and_several_steps_of_phi():
    state, info = plain()
    without, of_without = stepped(control_variate=False)
    assert_same((without.theta, of_without.wake_phi_loss), (state.theta, info.wake_phi_loss))
    assert abs(without.phi["b"] - state.phi["b"]) > 1e-5
    _, of_both = stepped(insomnia=0.5)
    _, of_dreams = stepped(insomnia=0.5, resample=None)
    assert_same((of_both.wake_theta_loss, of_both.wake_phi_loss), (info.wake_theta_loss, info.wake_phi_loss))
    assert_same(of_both.sleep_phi_loss, of_dreams.sleep_phi_loss)  # dreams have no weights
    assert_same(of_both.phi_loss, (of_both.wake_phi_loss + of_both.sleep_phi_loss) / 2)
    twice, of_twice = stepped(phi_steps=2)
    assert of_twice.finite
    assert abs(twice.phi["b"] - state.phi["b"]) > 1e-5
    assert 1e-5 < abs(twice.theta["a"] - 0.9) < 2 * 0.01 * of_twice.theta_grad_norm  # which moves once


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")  # one state is stepped in several ways
def test_seeds_are_mapped_over_and_steps_are_scanned():
    rws = made()
    states = jax.vmap(lambda rng_key: rws.init(rng_key, X))(jax.random.split(jax.random.key(0), 3))
    after, infos = jax.vmap(lambda state: rws.step(state, X))(states)
    one = jax.tree.map(lambda leaf: leaf[1], states)
    assert_same(jax.tree.map(lambda leaf: leaf[1], (after, infos)), rws.step(one, X))
    state = rws.init(jax.random.key(0), X)
    last, _ = jax.lax.scan(lambda state, _: rws.step(state, X), state, None, length=3)
    assert_same(last, stepped(num=3)[0])


@pytest.mark.slow
def test_several_series_and_several_devices():
    mesh = jax.make_mesh((8,), ("particles",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("particles"))
    one, info = stepped(SERIES, data_axes=0, num_particles=16)
    assert info.ess_min < info.ess_mean
    many, of_many = stepped(SERIES, data_axes=0, num_particles=16, particle_sharding=sharding)
    assert_same((many, of_many), (one, info), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")  # by NumPyro
def test_svi_runs_and_updates_alike():
    # SVI.run knows its data while it compiles, and what is made of these alone is computed at once.
    svi = SVI(model, guide, optax.sgd(0.01), loss=rws_jax.ReweightedWakeSleep(**HOW))
    ran = svi.run(jax.random.key(0), 3, X, progress_bar=False)
    state = svi.init(jax.random.key(0), X)
    for _ in range(3):
        state, loss = svi.update(state, X)
    assert_same((ran.params, ran.losses[-1]), (svi.get_params(state), loss))


@pytest.mark.slow
def test_mutable_state_goes_on_and_networks_that_start_at_random_are_the_same_for_all_particles():
    linen = pytest.importorskip("flax.linen")

    class Features(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(1)(linen.BatchNorm(use_running_average=False)(x))

    def counting_model(x):
        count = mutable("count", {"runs": jnp.array(0.0)})
        count["runs"] = count["runs"] + 1.0
        model(x)

    def network_guide(x):
        network = flax_module("network", Features(), mutable=["batch_stats"], input_shape=(len(x), 1))
        features = network(x[:, None])[:, 0]
        scan(lambda h, f: (numpyro.sample("z", dist.Normal(f + 0.2 * h, 0.8)), None), 0.0, features)

    state, info = stepped(num=2, model=counting_model, guide=network_guide)
    expected, _ = stepped(num=2, model=counting_model, guide=network_guide, resample=None)
    assert info.finite
    assert state.mutable_state["count"]["runs"] == 2.0
    assert_same(state.mutable_state, expected.mutable_state)
    params = made(counting_model, network_guide).get_params(state, X)
    how = HOW | {"mutable_state": state.mutable_state}
    weighed = rws_jax.importance_sample(jax.random.key(1), params, counting_model, network_guide, X, **how)
    assert np.isfinite(weighed.log_evidence().value)


@pytest.mark.slow
def test_a_compiled_guide_is_resampled():
    """Of a latent before the scan and two at each step: evidence as without resampling."""

    def model(x):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))

        def step(z, x):
            z = numpyro.sample("z", dist.Normal(0.5 * z, scale))
            kind = numpyro.sample("kind", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(z + kind, 0.5), obs=x)
            return z, None

        scan(step, 0.0, x)

    guide, x = rws_jax.compile_guide(model), X[:3]
    rws = made(model, guide)
    state, info = rws.step(rws.init(jax.random.key(0), x), x)
    assert info.finite
    params = rws.get_params(state, x)
    draw = lambda num, **how: rws_jax.importance_sample(
        jax.random.key(1), params, model, guide, x, num_particles=num, **how
    )
    value, error = draw(4000).log_evidence()
    found = draw(4000, resample="systematic").log_evidence()
    assert abs(found.value - value) < 5 * np.sqrt(2) * error  # its own error is hardly larger
    assert np.isnan(found.standard_error)


@pytest.mark.slow
@pytest.mark.usefixtures("allow_rank_promotion")
def test_samples_of_resampled_particles_go_on_to_predictions_and_arviz():
    params = {"a": 0.9, "b": 0.5, "c": 0.2}
    given = params, model, guide, X
    weighed = rws_jax.importance_sample(jax.random.key(1), *given, **HOW | {"num_particles": 500})
    drawn = rws_jax.posterior_predictive(jax.random.key(2), params, model, weighed, X, num_samples=4000)["x"]
    means = weighed.expectation().value["z"]
    assert drawn.shape == (4000, 4)
    np.testing.assert_allclose(drawn.mean(axis=0), means, atol=5 * 0.8 / np.sqrt(4000))
    samples = rws_jax.sample_posterior(jax.random.key(4), *given, num_samples=7, **HOW)
    assert samples["z"].shape == (7, 4)
    pytest.importorskip("arviz")
    data = rws_jax.to_arviz(weighed, jax.random.key(3), params, model, X, num_samples=10)
    assert np.isnan(data["sample_stats"]["pareto_k"])
    np.testing.assert_allclose(data["sample_stats"]["log_evidence"], weighed.log_evidence().value)


@pytest.mark.usefixtures("allow_key_reuse")
def test_programs_that_branch_in_python_are_refused_wherever_they_run():
    def branching(program):
        return lambda x: (numpyro.sample("is_odd", dist.Bernoulli(0.5), infer={"branching": True}), program(x))

    programs, params = (branching(model), branching(guide)), {"a": 0.9, "b": 0.5, "c": 0.2}
    seeded = [numpyro.handlers.seed(program, number) for number, program in enumerate(programs)]
    for call in (
        lambda: made(*programs).init(jax.random.key(0), X),
        lambda: rws_jax.wake_theta_loss(params, params, *seeded, X, **HOW),
        lambda: rws_jax.importance_sample(jax.random.key(0), params, *programs, X, **HOW),
    ):
        with pytest.raises(ValueError, match="'resample' is \"systematic\", but programs branch in Python\n"):
            call()


@pytest.mark.slow
def test_samples_in_double_precision_are_those_in_single():
    params = {"a": 0.9, "b": 0.5, "c": 0.2}
    draw = lambda: rws_jax.importance_sample(
        jax.random.key(0), params, model, guide, X, **(HOW | {"num_particles": 400})
    )
    single = draw()
    with enable_x64(True):
        double = draw()
        evidence = np.asarray(double.log_evidence().value)
    assert double.log_weights.dtype == jnp.float64
    assert double.samples["z"].shape == single.samples["z"].shape == (400, 4)
    np.testing.assert_allclose(evidence, single.log_evidence().value, atol=0.3)


def test_a_unit_that_dies_on_the_way_has_no_effective_sample_size():
    info = stepped(jnp.stack([X, X.at[3].set(jnp.inf)]), data_axes=0)[1]
    assert info.num_dead_units == 1
    assert info.ess_min == 0.0
    assert 0.5 < info.ess_mean < 4.0  # of the other one, halved


def test_bodies_may_have_deterministic_sites_and_carries_of_numbers():
    """These are no sample sites, and a carry that is passed on as it is may be a number of Python's."""

    def with_more(x):
        a = numpyro.param("a", 0.9)

        def step(carry, x):
            z, scale = carry
            z = numpyro.sample("z", dist.Normal(a * z, 1.0))
            numpyro.sample("x", dist.Normal(numpyro.deterministic("mean", z), scale), obs=x)
            return (z, scale), None

        scan(step, (0.0, 0.5), x)

    def without_carry(x):
        b = numpyro.param("b", 0.5)

        def step(carry, x):
            numpyro.sample("z", dist.Normal(b * x, 0.8))
            return carry, None

        scan(step, 0.0, x)

    params = {"a": 0.9, "b": 0.5, "c": 0.0}
    draw = lambda *programs: rws_jax.importance_sample(jax.random.key(0), params, *programs, X, **HOW).log_weights
    np.testing.assert_allclose(draw(with_more, without_carry), draw(model, guide), rtol=1e-5)
