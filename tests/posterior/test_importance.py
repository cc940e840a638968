"""Importance samples equal exact posteriors, with honest standard errors, however particles run."""

import contextlib
import gc
import weakref
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import rws_jax
from rws_jax.posterior import running
from tests.checks.test_errors import check
from tests.posterior import exact
from tests.posterior.exact import key

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def sample(case, rng_key=None, **options):
    rng_key = key() if rng_key is None else rng_key
    options = case.options | options
    return rws_jax.importance_sample(rng_key, case.params, case.model, case.guide, *case.args, **options)


def within(estimate, expected, num_errors=5.0):
    np.testing.assert_array_less(
        np.abs(np.asarray(estimate.value) - expected), num_errors * np.asarray(estimate.standard_error) + 1e-5
    )


@pytest.mark.parametrize("name", exact.CASES)
def test_evidence_means_and_variances_are_the_exact_ones(name):
    case = exact.CASES[name]()
    weighted = sample(case, num_particles=20_000)
    assert weighted.log_weights.shape == (20_000, *case.log_evidence.shape)
    within(weighted.log_evidence(), case.log_evidence)
    means = weighted.expectation()
    squares = weighted.log_weights, {n: x**2 for n, x in weighted.samples.items()}
    second = weighted.__class__(squares[1], squares[0], weighted.present, weighted.dims, weighted.units).expectation()
    for site, mean in case.means.items():
        of_site = lambda estimates, site=site: rws_jax.Estimate(*(field[site] for field in estimates))
        assert of_site(means).value.shape == mean.shape
        within(of_site(means), mean)
        within(of_site(second), case.variances[site] + mean**2)
        assert np.all(of_site(means).standard_error > 0)


@pytest.mark.parametrize("name", ["one gaussian", "discrete", pytest.param("state space", marks=pytest.mark.slow)])
def test_standard_errors_are_honest(name):
    """Intervals of two standard errors hold the exact number in 92 to 98 of 100 seeds, 95.4 if they were exact."""
    case = exact.CASES[name]()
    site, mean = next(iter(case.means.items()))

    @jax.jit
    @jax.vmap
    def covered(rng_key):
        weighted = sample(case, rng_key, num_particles=1000)
        evidence, means = weighted.log_evidence(), weighted.expectation()
        of_evidence = jnp.abs(evidence.value - case.log_evidence) <= 2 * evidence.standard_error
        of_mean = jnp.abs(means.value[site] - mean) <= 2 * means.standard_error[site]
        return jnp.mean(of_evidence), jnp.mean(of_mean)

    for share in covered(jax.random.split(key(), 500)):
        assert 0.92 <= np.mean(share) <= 0.98


def test_a_function_is_of_one_particle_of_one_unit():
    case = exact.two_gaussians()
    weighted = sample(case, num_particles=5000)
    shapes = []

    def product(latents):
        shapes.append({name: value.shape for name, value in latents.items()})
        return {"ab": latents["a"] * latents["b"], "norm": jnp.sum(latents["b"] ** 2)}

    found = weighted.expectation(product)
    assert shapes == [{"a": (2,), "b": (2,), "c": (2,)}]
    assert found.value["ab"].shape == (3, 2)
    assert found.value["norm"].shape == (3,)
    (x,) = case.args
    within(rws_jax.Estimate(found.value["ab"], found.standard_error["ab"]), (1 / 3 + 2 * x**2 / 9).T)
    within(rws_jax.Estimate(found.value["norm"], found.standard_error["norm"]), (2 / 3 + 4 * x**2 / 9).sum(axis=0))


# However particles run


@pytest.mark.parametrize("name", ["two gaussians", pytest.param("state space", marks=pytest.mark.slow)])
def test_chunks_devices_and_one_by_one_draw_the_same(name):
    case = exact.CASES[name]()
    all_at_once = sample(case, num_particles=8)
    sharding = jax.sharding.NamedSharding(jax.make_mesh((2,), ("p",)), jax.sharding.PartitionSpec("p"))
    for options in {"chunk_size": 3}, {"particle_sharding": sharding}, {"vectorize_particles": False}:
        other = sample(case, num_particles=8, **options)
        assert other.dims == all_at_once.dims
        assert other.units == all_at_once.units
        for ours, theirs in zip(jax.tree.leaves(all_at_once), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_by_paths_draws_what_runs_one_by_one():
    """Sites that one particle has and another has not are filled up by NaN, and said to be missing."""
    case = exact.branching()
    by_paths, alone = sample(case, num_particles=12), sample(case, num_particles=12, vectorize_particles=False)
    for ours, theirs in zip(jax.tree.leaves(by_paths), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    k, a, present = np.asarray(by_paths.samples["k"]), np.asarray(by_paths.samples["a"]), by_paths.present
    assert a.shape == (12, 3, 2)
    assert list(present) == ["a"]
    np.testing.assert_array_equal(present["a"][..., 1], k == 1)
    np.testing.assert_array_equal(np.isnan(a), ~np.asarray(present["a"]))
    assert by_paths.dims == (("k", ("datum",)), ("a", ("datum", "components")))


def test_the_particles_of_a_datum_do_not_depend_on_the_others():
    """Bit for bit: nor on how many data there are, as long as it has its place among them."""
    x = np.linspace(-2.0, 2.0, 64, dtype=np.float32)

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.5, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(0.4 * x, 1.0))

    run = lambda x: rws_jax.importance_sample(key(), {}, model, guide, x, data_axes=0, num_particles=100)
    whole = run(x)
    for num in 1, 7, 32:
        part = run(x[:num])
        np.testing.assert_array_equal(part.log_weights, whole.log_weights[:, :num])
        np.testing.assert_array_equal(part.log_evidence().value, whole.log_evidence().value[:num])
        np.testing.assert_array_equal(part.samples["z"], whole.samples["z"][:, :num])


def test_chunks_take_the_memory_of_one_chunk():
    """Temporary memory of the compiled sampler, beside draws and log-weights, does not grow with particles."""
    case = exact.one_gaussian()
    x = jnp.zeros(1000)

    def memory(num_particles, chunk_size):
        def draw(rng_key, x):
            options = {"num_particles": num_particles, "chunk_size": chunk_size}
            return rws_jax.importance_sample(rng_key, case.params, case.model, case.guide, x, **options)

        return jax.jit(draw).lower(key(), x).compile().memory_analysis().temp_size_in_bytes

    few, many, at_once = memory(100, 20), memory(1000, 20), memory(1000, None)
    assert many - few <= 8 * 900  # bytes: the index of each particle
    assert at_once > 5 * many


def test_equal_calls_compile_once_and_programs_of_the_past_are_forgotten():
    counts = []

    def call(x, rng_key, model, guide):
        return rws_jax.importance_sample(rng_key, {"slope": SLOPE}, model, guide, x, num_particles=4)

    def programs():
        def model(x):
            counts.append(x)
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.0) * x, 1.0))

        return model, guide

    kept = programs()
    call(1.0, key(), *kept)
    num = len(counts)
    call(2.0, key(1), *kept)
    assert len(counts) == num  # another key, another number, the same parameters: nothing is traced
    refs = []
    for number in range(70):
        model, guide = programs()
        refs.append(weakref.ref(model))
        if number < 2:
            call(1.0, key(), model, guide)
        else:
            running._compiled_of(model, guide)
    del model
    gc.collect()
    assert refs[0]() is None
    assert refs[1]() is None


SLOPE = jnp.array(0.5)


@pytest.mark.parametrize("in_context", [False, True])
def test_data_may_be_on_explicit_axes_of_a_mesh(in_context):
    case = exact.one_gaussian()
    x = np.linspace(-1.0, 1.0, 8, dtype=np.float32)
    run = lambda x, **how: rws_jax.importance_sample(
        key(), case.params, case.model, case.guide, x, num_particles=30, **how
    )
    expected = run(x).log_evidence().value
    mesh = jax.make_mesh((4,), ("p",), axis_types=(jax.sharding.AxisType.Explicit,))
    placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("p")))
    with jax.set_mesh(mesh) if in_context else contextlib.nullcontext():
        for how in {}, {"chunk_size": 10}:
            np.testing.assert_allclose(run(placed, **how).log_evidence().value, expected, rtol=1e-5)
        assert run(placed).expectation().value["z"].shape == (8,)


def simulator():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0))


def guide_of_observations(observations):
    numpyro.sample("z", dist.Normal(observations["x"] / 2, 0.8))


def conditioned(observations):
    return numpyro.handlers.condition(simulator, data=observations)()


CALLS = {
    "simulator": (simulator, guide_of_observations, {}, ("the model does not take", "condition(model, data=observ")),
    "one by one": (simulator, guide_of_observations, {"vectorize_particles": False}, ("the model does not take",)),
    "handler": (numpyro.handlers.block(simulator), guide_of_observations, {}, ("the model does not take", "are ()")),
    "partial": (partial(conditioned), partial(simulator), {}, ("the guide does not take", "'observations'")),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_program_that_does_not_take_the_arguments_is_named(name):
    model, guide, options, words = CALLS[name]
    observations = {"x": jnp.array(1.0)}
    with pytest.raises(TypeError) as error:
        rws_jax.importance_sample(key(), {}, model, guide, observations=observations, num_particles=2, **options)
    check(error, TypeError, *words, "got an unexpected keyword argument 'observations'")


def test_programs_of_arguments_that_signatures_do_not_tell_go_on_as_they_are():
    """A decorator keeps the signature of what it wraps; an error of the user's own stays that; a guide runs alone."""

    @wraps(simulator)
    def decorated(**observations):
        return conditioned(**observations)

    def mistaken(observations):
        guide_of_observations()

    call = lambda model, guide: rws_jax.importance_sample(
        key(), {}, model, guide, observations={"x": jnp.array(1.0)}, num_particles=2
    )
    weighted = call(decorated, guide_of_observations)
    assert np.all(np.isfinite(weighted.log_weights))
    with pytest.raises(TypeError, match=r"^guide_of_observations\(\) missing 1 required"):
        call(decorated, mistaken)
    args = key(), {}, simulator, guide_of_observations
    drawn = rws_jax.sample_posterior(*args, observations={"x": jnp.array(1.0)}, num_samples=2)
    assert drawn["z"].shape == (2,)
    with pytest.raises(TypeError, match=r"(?s)the model does not take.*too many.*found:    1 of them by position"):
        rws_jax.posterior_predictive(key(), {}, simulator, weighted, 1.0)


def two_ways(x):
    numpyro.sample("k", dist.Bernoulli(0.5 if x > 0 else 0.2), infer={"branching": True})


def one_or_two(x):
    k = numpyro.sample("k", dist.Bernoulli(logits=x), infer={"branching": True})
    with numpyro.plate("components", 1 + int(k)):
        numpyro.sample("a", dist.Normal(x, 1.0))


@pytest.mark.parametrize("options", [{}, {"vectorize_particles": False}], ids=str)
@pytest.mark.parametrize("guide", [two_ways, one_or_two])
def test_programs_of_one_datum_that_are_given_many_have_a_note(guide, options):
    case = exact.branching()
    call = lambda x: rws_jax.importance_sample(key(), {}, case.model, guide, x, num_particles=2, **options)
    with pytest.raises((TypeError, ValueError), match="array") as error:
        call(*case.args)
    notes = [note for note in error.value.__notes__ if "pass data_axes=0" in note]
    assert notes == [
        "Are the programs written for one datum? Then pass data_axes=0, which runs them on each row of the arguments."
    ]


def test_gradients_of_evidence_reach_the_model_alone():
    """The mean of d log p under the weights, (z - loc) here; draws, and log q, are constants."""
    case = exact.one_gaussian()

    def log_evidence(params):
        given = params, case.model, case.guide, *case.args
        weighted = rws_jax.importance_sample(key(), *given, num_particles=50)
        return jnp.sum(weighted.log_evidence().value), weighted

    params = {name: jnp.array(value) for name, value in case.params.items()}
    gradient, weighted = jax.grad(log_evidence, has_aux=True)(params)
    expected = jnp.sum(weighted.weights * (weighted.samples["z"] - params["loc"]))
    np.testing.assert_allclose(gradient["loc"], expected, rtol=1e-4)
    assert gradient["slope"] == 0.0


@pytest.mark.usefixtures("allow_key_reuse")  # by NumPyro's own subsampling
def test_a_minibatch_has_weights_free_of_scale_and_says_what_its_scale_is():
    case = exact.one_gaussian()

    def in_plate(size):
        def model(x):
            with numpyro.plate("data", size, subsample_size=len(x)):
                z = numpyro.sample("z", dist.Normal(0.5, 1.0))
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            with numpyro.plate("data", size, subsample_size=len(x)):
                numpyro.sample("z", dist.Normal(0.4 * x, 1.0))

        return rws_jax.importance_sample(key(), {}, model, guide, *case.args, num_particles=20)

    (x,) = case.args
    for size in 3, 300:
        weighted = in_plate(size)
        z = np.asarray(weighted.samples["z"])
        by_hand = exact.log_normal(z, 0.5, 1.0) + exact.log_normal(x, z, 1.0) - exact.log_normal(z, 0.4 * x, 1.0)
        assert weighted.scale == size / 3
        np.testing.assert_allclose(weighted.log_weights, by_hand, rtol=1e-4, atol=1e-5)
