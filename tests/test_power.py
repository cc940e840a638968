"""The tests can fail: each way of getting an estimator wrong turns at least one of them red."""

import inspect
import types
from functools import partial

import pytest

from rws_jax import (
    defensive,
    density,
    estimators,
    handlers,
    layout,
    one_path,
    particles,
    pathwise,
    svi,
    updates,
    weights,
)
from tests import (
    test_branching,
    test_chunks,
    test_data,
    test_devices,
    test_exact,
    test_losses,
    test_options,
    test_step,
    test_support,
    test_svi,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")]


def functions_of(namespace, module):
    """Functions, methods and properties that a module defines, by name."""
    for name, value in vars(namespace).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
            yield f"{namespace.__name__}.{name}", function
        elif isinstance(value, type) and value.__module__ == module.__name__ and namespace.__name__ != value.__name__:
            yield from functions_of(value, module)


@pytest.fixture
def mutate(monkeypatch):
    """Replace a piece of a module's source for the time of a test; its functions keep their identity."""

    def replace(module, old, new):
        source = inspect.getsource(module)
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}"
        mutant = types.ModuleType(module.__name__)
        exec(compile(source.replace(old, new), module.__file__, "exec"), vars(mutant))
        changed = dict(functions_of(mutant, module))
        for name, function in functions_of(module, module):
            if function.__code__.co_consts != changed[name].__code__.co_consts or (
                function.__code__.co_code != changed[name].__code__.co_code
            ):
                monkeypatch.setattr(function, "__code__", changed[name].__code__)

    return replace


# Tests that a mutation must turn red
by_hand = lambda name: partial(test_losses.test_wake_equals_hand_computation_from_detached_values, name)
chunked = lambda name: partial(test_chunks.test_losses_and_gradients_do_not_depend_on_the_size_of_chunks, name)
asleep = lambda name: partial(test_losses.test_sleep_equals_hand_computation_from_dreams, name)
expected = lambda proposal: partial(test_exact.test_expected_wake_gradients_equal_enumeration, proposal)
drawn = lambda proposal: partial(test_exact.test_particles_are_drawn_from_their_proposal, proposal)
narrower = lambda name: partial(
    test_support.test_particles_outside_of_a_narrower_model_weigh_nothing_and_are_counted, name
)
dreams_expected = test_exact.test_expected_sleep_gradient_equals_enumeration
dreg_by_hand = partial(
    test_exact.test_the_reparameterised_gradient_is_that_of_the_formula, "two latents", test_exact.path_of_two
)
dying = partial(test_exact.test_the_control_variate_leaves_the_expected_gradient_where_particles_can_die, 2)

# name -> module, a piece of its source, what it is replaced by, a test that must then fail
MUTATIONS = {
    "draws not detached": (particles, "guide = guide.stopped()  #", "pass  #", by_hand("two latents")),
    "weights not detached": (
        estimators,
        "log_w = lax.stop_gradient(particles.log_weights)",
        "log_w = particles.log_weights",
        by_hand("one latent"),
    ),
    "proposal not detached": (particles, "jax.lax.stop_gradient(log_r)", "log_r", by_hand("one latent")),
    "dreams not detached": (particles, "model = model.stopped()  #", "pass  #", asleep("one latent")),
    "prior draws not detached": (
        defensive,
        "sampled(defence.model.stopped(), ",
        "sampled(defence.model, ",
        by_hand("one latent"),
    ),
    "baseline not detached": (
        estimators,
        "lax.stop_gradient(weights.log_weights(particles.log_q, log_r))",
        "weights.log_weights(particles.log_q, log_r)",
        by_hand("one latent"),
    ),
    "score left in dreg": (estimators, "loss = lax.stop_gradient(loss) - _", "loss = loss - _", dreg_by_hand),
    "values of dreg not detached": (
        estimators,
        "lax.stop_gradient(draws) if pathwise else draws",
        "draws",
        test_options.test_dreg_is_passed_on_to_wake_phi,
    ),
    "densities of dreg not detached": (
        estimators,
        "model.stopped(), guide.stopped(), draws",
        "model, guide, draws",
        dreg_by_hand,
    ),
    "single weight in dreg": (estimators, "slope = w * (1.0 - w)", "slope = w", dreg_by_hand),
    "sign of wake-theta": (estimators, "return -scale *", "return scale *", expected("guide")),
    "sign of wake-phi": (estimators, "loss = -jnp.sum(w *", "loss = jnp.sum(w *", expected("guide")),
    "sign of sleep-phi": (estimators, "return -dreams.scale", "return dreams.scale", dreams_expected),
    "sign of the baseline": (
        estimators,
        "loss = loss + _gradient_only",
        "loss = loss - _gradient_only",
        by_hand("one latent"),
    ),
    "joint weights": (
        density,
        "return cls({frame.dim: frame.size for frame in common}, scale)",
        "return cls({}, scale)",
        expected("guide"),
    ),
    "1/K forgotten in the bound": (
        weights,
        "jnp.where(live, total, -jnp.inf) - jnp.log(log_w.shape[0])",
        "jnp.where(live, total, -jnp.inf)",
        expected("guide"),
    ),
    "1/K forgotten in the baseline": (weights, "0.0) / totals.num_particles", "0.0)", by_hand("one latent")),
    "baseline without q/r": (weights, "jnp.exp(log_ratio)", "1.0 + 0.0 * log_ratio", expected("prior")),
    "baseline of dead units": (weights, "num_alive[None] - live > 0", "num_alive[None] - live >= 0", dying),
    "scale missing in wake-phi": (estimators, "return particles.scale * loss", "return loss", by_hand("subsampled")),
    "scale missing in wake-theta": (estimators, "return -scale *", "return -1.0 *", by_hand("subsampled")),
    "scale missing in chunks": (estimators, "return -particles.scale *", "return -1.0 *", chunked("subsampled")),
    "weights of a chunk alone": (
        estimators,
        "phi_loss(particles, options.control_variate, known)",
        "phi_loss(particles, options.control_variate)",
        chunked("one latent"),
    ),
    "chunks added at different scales": (weights, "one.sum * scales[0]", "one.sum", chunked("one latent")),
    "a NaN weight hidden in chunks": (
        estimators,
        "_gradient_only(jnp.sum(w * _masked(w != 0.0, ",
        "_gradient_only(jnp.sum(w * _masked(w > 0.0, ",
        partial(test_chunks.test_weights_that_are_wrong_are_seen_in_chunks_as_elsewhere, float("nan")),
    ),
    "gradients of the model's chunks alone": (
        estimators,
        "return theta_slope(particles, known) + phi, phi",
        "return theta_slope(particles, known), phi",
        chunked("one latent"),
    ),
    "scale missing in sleep": (estimators, "return -dreams.scale *", "return -1.0 *", asleep("subsampled")),
    "scale left in the weights": (density, '(site["scale"] / self.scale)', 'site["scale"]', by_hand("subsampled")),
    "q in place of r": (
        particles,
        "log_r = weights.log_mixture(log_q, log_u, defence.delta)",
        "log_r = None",
        expected("prior"),
    ),
    "r with its shares exchanged": (
        weights,
        "jnp.log1p(-delta) + log_q, jnp.log(delta) + log_u",
        "jnp.log1p(-delta) + log_u, jnp.log(delta) + log_q",
        expected("uniform"),
    ),
    "r at the point that the guide drew": (
        defensive,
        "latents[name] = jnp.where(choice, other, mine)",
        "latents[name] = mine",
        drawn("uniform"),
    ),
    "components exchanged": (
        defensive,
        "jnp.where(choice, other, mine)",
        "jnp.where(choice, mine, other)",
        drawn("uniform"),
    ),
    "one component for all units": (
        defensive,
        "defence.delta, Units.of(model_run, guide_run, run).batch_shape)",
        "defence.delta, (1,) * len(Units.of(model_run, guide_run, run).batch_shape))",
        drawn("prior"),
    ),
    "u tempered by scale": (
        density,
        'log_density(site["fn"], latents[name], drawn_from(site)) for',
        '2.0 * log_density(site["fn"], latents[name], drawn_from(site)) for',
        by_hand("scaled"),
    ),
    "one draw for all particles": (
        handlers,
        "jax.random.fold_in(rng_key, self.index)",
        "jax.random.fold_in(rng_key, 0)",
        test_losses.test_a_particle_depends_on_the_seed_and_its_index_alone,
    ),
    "density outside of the support": (
        density,
        "return jnp.where(inside, fn.log_prob(feasible(fn, value, drawn_from)), -jnp.inf)",
        "return fn.log_prob(value)",
        narrower("exponential"),
    ),
    "particles that are not divided over devices": (
        layout,
        "return lax.with_sharding_constraint(indices, devices.automatic_sharding(self.particle_sharding))",
        "return indices",
        test_devices.test_particles_over_devices_cost_reductions_of_units_and_of_gradients,
    ),
    "steps that are not finite": (
        updates,
        "select(finite, new_guide, (state.phi, state.phi_opt_state))",
        "new_guide",
        test_step.test_an_update_that_overflows_is_not_taken,
    ),
    "a guide that SVI does not train": (
        svi,
        "objective((params, params), share",
        "objective((params, lax.stop_gradient(params)), share",
        test_svi.test_losses_come_as_a_pair_with_the_gradients_of_both,
    ),
    "a finite loss of dead units in SVI": (
        svi,
        "return total + jnp.where(alive, 0.0, jnp.inf)",
        "return total",
        test_svi.test_stable_updates_do_not_learn_from_particles_outside_of_the_support,
    ),
    "model updated by dead units": (
        updates,
        "select(finite & alive, new_model, model_state)",
        "select(finite, new_model, model_state)",
        test_step.test_dreams_rescue_a_guide_that_has_left_the_support,
    ),
    "one randomness for all data": (
        handlers,
        "rng_key = jax.random.fold_in(rng_key, self.datum)",
        "pass",
        test_data.test_a_draw_depends_on_seed_datum_and_particle_alone,
    ),
    "gradients of paths without weights": (
        one_path,
        "weights[: len(pairs)] = cotangents",
        "weights[: len(pairs)] = 1.0",
        test_branching.test_a_step_by_paths_has_the_expectation_of_one_in_a_plate,
    ),
    "particles of another path": (
        pathwise,
        "members[which.ravel() == number]",
        "members[::-1][which.ravel() == number]",
        test_branching.test_a_step_by_paths_has_the_expectation_of_one_in_a_plate,
    ),
    "the other of guide and defensive guide": (
        defensive,
        "if not walk.choose(",
        "if walk.choose(",
        partial(test_branching.test_paths_compute_what_unjitted_particles_do, "nested", {"defensive": 0.3}, None),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_turns_a_test_red(name, mutate):
    module, old, new, test = MUTATIONS[name]
    mutate(module, old, new)
    with pytest.raises(AssertionError):
        test()


def test_what_was_replaced_is_restored(mutate):
    original = estimators.dream_loss.__code__
    mutate(estimators, "return -dreams.scale", "return dreams.scale")
    assert estimators.dream_loss.__code__ != original
    mutate(estimators, "return -dreams.scale", "return -dreams.scale")
    assert estimators.dream_loss.__code__.co_code == original.co_code
