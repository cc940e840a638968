"""The tests can fail: each way of getting an estimator wrong turns at least one of them red."""

import inspect
import types
from functools import cached_property, partial

import jax
import pytest

import rws_jax
from rws_jax.checks import masks
from rws_jax.core import draws, equations, interpreted, keys, log_probs, merged, site_functions, sites, supports, trees
from rws_jax.estimators import (
    bound,
    defensive,
    dreg,
    nested,
    nested_choice,
    nested_weights,
    resampled,
    score,
    scored,
    sleep,
    vimco,
    wake,
    weights,
)
from rws_jax.estimators import resampling as estimators_resampling
from rws_jax.execution import accumulated, all_paths, chunked, data_chunks, ragged, vectorized
from rws_jax.execution.branching import compiled_path, compiled_tree, grouped_run, unrolled
from rws_jax.guides import arguments, axes, context, networks, proposing
from rws_jax.guides.proposals import arrays, elements, mixture, reals
from rws_jax.posterior import evidence_particle
from rws_jax.posterior.dreams import dreamt, p_values, ranking, uniformity
from rws_jax.posterior.held_out import evaluation, evidence
from rws_jax.posterior.predictive import predictive_particles
from rws_jax.posterior.samples import estimate, layout, psis, weighted
from rws_jax.programs import (
    density,
    drawing,
    handlers,
    held,
    independence,
    levels,
    lockstep,
    predict,
    program,
    randomness,
)
from rws_jax.training import description, held_out, site_tables, step_loss, svi, trainer, updates
from tests import test_cost, test_losses, test_options
from tests.core import test_interpreted, test_keys, test_log_probs, test_merged, test_site_functions, test_support
from tests.core import test_trees as test_trees_of_arrays
from tests.estimators import (
    test_exact,
    test_nested,
    test_nested_weights,
    test_resampled,
    test_resampled_exact,
    test_weights,
)
from tests.execution import (
    test_all_paths,
    test_branching,
    test_chunks,
    test_data,
    test_data_chunks,
    test_devices,
    test_one_by_one,
    test_ragged,
    test_trees,
)
from tests.guides import test_compile_guide, test_plates, test_proposals, test_sequences
from tests.guides import test_routes as test_routes_of_guides
from tests.posterior import (
    test_calibration,
    test_dreamt,
    test_importance,
    test_predictive,
    test_psis,
    test_simulation_gap,
    test_structured,
    test_uniformity,
    test_weighted,
)
from tests.posterior import test_evaluate as test_posterior_evaluate
from tests.programs import (
    test_conditioned,
    test_drawing,
    test_held,
    test_independence,
    test_levels,
    test_lockstep,
    test_user_programs,
)
from tests.training import (
    test_describe,
    test_evaluate,
    test_held_out,
    test_mutable_state,
    test_optimizers,
    test_step,
    test_svi,
)

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")


def functions_of(namespace, module):
    """Functions, methods and properties that a module defines, by name."""
    for name, value in vars(namespace).items():
        function = getattr(value, "__func__", value)
        if isinstance(value, property | cached_property):
            function = value.fget if isinstance(value, property) else value.func
        if not isinstance(function, type):
            function = inspect.unwrap(function) if callable(function) else function  # of what is compiled by itself
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
        content = lambda function: [getattr(function.__code__, f"co_{what}") for what in ("consts", "code", "names")]
        for name, function in functions_of(module, module):
            if content(function) != content(changed[name]):
                monkeypatch.setattr(function, "__code__", changed[name].__code__)

    return replace


# Tests that a mutation must turn red
by_hand = lambda name: partial(test_losses.test_wake_equals_hand_computation_from_detached_values, name)
chunked_losses = lambda name: partial(test_chunks.test_losses_and_gradients_do_not_depend_on_the_size_of_chunks, name)
asleep = lambda name: partial(test_losses.test_sleep_equals_hand_computation_from_dreams, name)
expected = lambda proposal: partial(test_exact.test_expected_wake_gradients_equal_enumeration, proposal)
drawn = lambda proposal: partial(test_exact.test_particles_are_drawn_from_their_proposal, proposal)
narrower = lambda name: partial(
    test_support.test_particles_outside_of_a_narrower_model_weigh_nothing_and_are_counted, name
)
closing_over = lambda loss, options: partial(
    test_user_programs.test_a_gradient_is_the_same_of_params_and_of_what_programs_close_over, loss, options
)
dreams_expected = test_exact.test_expected_sleep_gradient_equals_enumeration
dreg_by_hand = partial(
    test_exact.test_the_reparameterised_gradient_is_that_of_the_formula, "two latents", test_exact.path_of_two
)
one_run = test_drawing.test_one_run_has_the_draws_densities_and_gradients_of_two
dying = partial(test_exact.test_the_control_variate_leaves_the_expected_gradient_where_particles_can_die, 2)

hand_numbers = test_losses.test_hand_numbers_on_three_particles


def compiled_anew(test):
    """The same test; nothing that was compiled before is used in it, nor what it compiles afterwards."""

    def run():
        jax.clear_caches()
        try:
            test()
        finally:
            jax.clear_caches()

    return run


nested_by_hand = lambda name: compiled_anew(
    partial(test_nested.test_losses_and_gradients_are_those_of_formulas_by_hand, name)
)
nested_expected = lambda *case: compiled_anew(partial(test_nested.test_expectations_equal_enumeration, *case))
filter_by_hand = compiled_anew(
    partial(
        test_resampled.test_losses_and_gradients_are_those_of_a_particle_filter_by_hand,
        test_resampled.ALWAYS,
    )
)
filter_expected = compiled_anew(
    partial(test_resampled_exact.test_expected_evidence_and_gradients_equal_enumeration, 0.9, None)
)
smoothed = compiled_anew(
    test_resampled_exact.test_a_long_series_has_the_evidence_of_the_kalman_filter_and_the_means_of_the_smoother
)
nested_dying = lambda *case: compiled_anew(partial(test_nested.test_expectations_where_particles_can_die, *case))


# name -> module, a piece of its source, what it is replaced by, a test that must then fail
def drawn_anew(test):
    """The same test, on samples that are drawn for it alone."""

    def run():
        test_structured.nested_samples.cache_clear()
        try:
            compiled_anew(test)()
        finally:
            test_structured.nested_samples.cache_clear()

    return run


def interpreted_anew(function):
    """The test of a function that is differentiated equation by equation, each of which is compiled anew."""

    def run():
        equations.function_of.cache_clear()
        try:
            test_interpreted.test_values_and_gradients_are_those_of_jax(function)
        finally:
            equations.function_of.cache_clear()

    return run


MUTATIONS = {
    "gradients of the particles before forgotten": (
        equations,
        "[total + grad for",
        "[grad for",
        interpreted_anew(test_interpreted.nested),
    ),
    "the cotangent of a sum for its first input alone": (
        interpreted,
        "for place in step.moving:",
        "for place in step.moving[:1]:",
        interpreted_anew(test_interpreted.two_sums),
    ),
    "what a call needs read off the wrong outputs": (
        equations,
        "called.jaxpr.outvars[place] for place in outputs",
        "called.jaxpr.outvars[place] for place in range(len(outputs))",
        interpreted_anew(test_interpreted.last_of_several),
    ),
    "draws not detached": (
        wake,
        "return stopped(draws)",
        "return draws",
        closing_over(rws_jax.wake_phi_loss, {"defensive": 0.3}),
    ),
    "draws of one run not detached": (drawing, "return lax.stop_gradient(value)", "return value", one_run),
    "ways of drawing differentiated": (drawing, 'constant_distribution(site["fn"])', 'site["fn"]', one_run),
    "two runs for one": (
        wake,
        "if self.delta or self.reparameterised or index.alone:",
        "if True:",
        test_cost.test_a_program_with_a_scan_costs_hardly_more_than_one_loop_by_hand,
    ),
    "rounds of keys in another order": (
        keys,
        "_ROTATIONS[group % 2]",
        "_ROTATIONS[0]",
        compiled_anew(partial(test_keys.test_quick_keys_make_the_keys_that_jax_makes, True)),
    ),
    "parts of a distribution differentiated": (
        draws,
        "return jax.tree.map(lambda part: _constant(part, known), value, is_leaf=is_part)",
        "return value",
        one_run,
    ),
    "weights not detached": (
        scored,
        "weights.normalise(log_w), weights.score_baseline",
        "weights.normalise(self.log_weights), weights.score_baseline",
        by_hand("one latent"),
    ),
    "proposal not detached": (scored, "lax.stop_gradient(self.log_r)", "self.log_r", by_hand("one latent")),
    "dreams not detached": (
        sleep,
        "return model_run, lax.stop_gradient(dream)",
        "return model_run, dream",
        closing_over(rws_jax.sleep_phi_loss, {}),
    ),
    "baseline not detached": (
        scored,
        "lax.stop_gradient(weights.log_weights(self.log_q, self.log_r))",
        "weights.log_weights(self.log_q, self.log_r)",
        by_hand("one latent"),
    ),
    "score left in dreg": (
        dreg,
        "lax.stop_gradient(score.plain_phi_loss(scored))",
        "score.plain_phi_loss(scored)",
        dreg_by_hand,
    ),
    "values of dreg not detached": (
        wake,
        "fixed = lax.stop_gradient(draws)",
        "fixed = draws",
        test_options.test_dreg_is_passed_on_to_wake_phi,
    ),
    "densities of dreg not detached": (
        wake,
        "log_w_of_draw=lax.stop_gradient(log_w) + along(move)",
        "log_w_of_draw=log_w + along(move)",
        dreg_by_hand,
    ),
    "single weight in dreg": (dreg, "slope = w * (1.0 - w)", "slope = w", dreg_by_hand),
    "sign of wake-theta": (bound, "return -scored.scale *", "return scored.scale *", expected("guide")),
    "sign of wake-phi": (score, "return -scored.scale *", "return scored.scale *", expected("guide")),
    "u trained by the guide's loss": (scored, "lax.stop_gradient(self.log_u)", "self.log_u", by_hand("one latent")),
    "sign of vimco": (
        vimco,
        "jnp.sum(bound) + weights.gradient_only",
        "jnp.sum(bound) - weights.gradient_only",
        hand_numbers,
    ),
    "weights of vimco not detached": (
        vimco,
        "log_w = lax.stop_gradient(scored.log_weights)",
        "log_w = scored.log_weights",
        by_hand("one latent"),
    ),
    "scale missing in vimco": (vimco, "return -scored.scale *", "return -1.0 *", by_hand("subsampled")),
    "score of the bound left out of vimco": (vimco, "signal - weights.normalise(log_w)", "signal", hand_numbers),
    "a baseline of vimco with the particle itself": (
        vimco,
        "jnp.logaddexp, -jnp.inf), own)",
        "jnp.logaddexp, -jnp.inf), log_w)",
        hand_numbers,
    ),
    "vimco by q in place of r": (
        vimco,
        "coefficients * weights.masked(counts, scored.log_r)",
        "coefficients * weights.masked(counts, scored.log_q)",
        partial(test_exact.test_the_expected_gradient_of_vimco_is_that_of_the_expected_bound, "prior"),
    ),
    "a geometric mean of the living alone": (
        vimco,
        "num_others_dead > 0",
        "num_others_dead < 0",
        partial(test_exact.test_vimco_by_hand_where_some_are_dead),
    ),
    "sign of sleep-phi": (sleep, "return -dreams.scale", "return dreams.scale", dreams_expected),
    "sign of the baseline": (
        score,
        "+ scored.scale * weights.gradient_only",
        "- scored.scale * weights.gradient_only",
        by_hand("one latent"),
    ),
    "joint weights": (
        density,
        "return cls(tuple(sorted((frame.dim, frame.size) for frame in common)), scale, frozenset(common))",
        "return cls((), scale)",
        expected("guide"),
    ),
    "a gradient of the largest weight in the bound": (
        weights,
        "lax.stop_gradient(_log_max(log_w, axis))  # what is made",
        "_log_max(log_w, axis)  # what is made",
        expected("guide"),
    ),
    "NaN weights taken for dead ones": (
        weights,
        "_total(log_w, axis) != 0.0",
        "jnp.max(log_w, axis=axis) != -jnp.inf",
        partial(test_weights.test_one_nan_among_many_particles_and_units_is_not_lost, float("-inf")),
    ),
    "NaN in large parameters not found": (
        trees,
        "jnp.sum(jnp.where(jnp.isfinite(old) & ~jnp.isfinite(new), 1.0, 0.0)) == 0.0",
        "jnp.isfinite(jnp.max(jnp.where(jnp.isfinite(old), abs(new), 0.0), initial=0.0))",
        partial(test_trees_of_arrays.test_one_number_that_is_not_finite_is_found_wherever_it_is, 5000, float("nan")),
    ),
    "the derivative of a softplus scaled": (
        log_probs,
        "dx * lax.logistic(x)",
        "0.5 * dx * lax.logistic(x)",
        partial(test_user_programs.test_gradients_of_logits_are_exact_where_guides_start, 0.0, None),
    ),
    "1/K forgotten in the bound": (
        weights,
        "jnp.where(live, log_total, -jnp.inf) - jnp.log(log_w.shape[axis])",
        "jnp.where(live, log_total, -jnp.inf)",
        expected("guide"),
    ),
    "1/K forgotten in the baseline": (weights, "0.0) / log_w.shape[0]", "0.0)", by_hand("one latent")),
    "baseline without q/r": (weights, "jnp.exp(log_ratio)", "1.0 + 0.0 * log_ratio", expected("prior")),
    "baseline of dead units": (weights, "num_others_alive(log_w) > 0", "num_others_alive(log_w) >= 0", dying),
    "scale missing in wake-phi": (score, "return -scored.scale *", "return -1.0 *", by_hand("subsampled")),
    "scale missing in wake-theta": (bound, "return -scored.scale *", "return -1.0 *", by_hand("subsampled")),
    "a chunk run twice": (
        chunked,
        "rest = of_chunk(jnp.arange(num - num_rest, num))",
        "rest = of_chunk(jnp.arange(num_rest))",
        chunked_losses("one latent"),
    ),
    "gradients of chunks added up in half precision": (
        chunked,
        "jnp.promote_types(jnp.result_type(x), jnp.float32)",
        "jnp.result_type(x)",
        test_chunks.test_gradients_have_the_types_of_parameters_and_are_summed_in_single_precision,
    ),
    "scale missing in sleep": (sleep, "return -dreams.scale *", "return -1.0 *", asleep("subsampled")),
    "scale left in the weights": (density, "(scale / self.scale)", "scale", by_hand("subsampled")),
    "q in place of r": (
        scored,
        "return weights.log_mixture(self.log_q, log_u, self.delta)",
        "return self.log_q",
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
        'jnp.where(units.beside(chosen, site), run[name]["value"], site["value"])',
        'site["value"]',
        drawn("uniform"),
    ),
    "components exchanged": (
        defensive,
        'jnp.where(units.beside(chosen, site), run[name]["value"], site["value"])',
        'jnp.where(units.beside(chosen, site), site["value"], run[name]["value"])',
        drawn("uniform"),
    ),
    "one component for all units": (
        defensive,
        "chosen = jax.random.bernoulli(rng_key, delta, units.batch_shape)",
        "chosen = jnp.broadcast_to(jax.random.bernoulli(rng_key, delta), units.batch_shape)",
        drawn("prior"),
    ),
    "supports of elements taken for those of events": (
        supports,
        "return inside.all(axis=tuple(range(-num_dims, 0)))",
        "return inside",
        partial(test_user_programs.test_a_support_of_elements_is_one_of_events, 3),
    ),
    "draws left on the border": (
        draws,
        "value = jnp.where(value < low, jnp.asarray(low, value.dtype), value)",
        "value = jnp.asarray(value)",
        partial(test_user_programs.test_draws_on_a_border_are_moved_inside_where_densities_are_finite, "gamma"),
    ),
    "a constant in each unit": (
        density,
        "share = 1.0 / math.prod(size for dim, size in self.sizes if dim not in own)",
        "share = 1.0",
        partial(test_conditioned.test_a_constant_is_scored_once_and_leaves_each_datum_its_weight, "by data", 3),
    ),
    "elements not compared": (
        independence,
        "kept = np.where(exchanged, found, before[site])",
        "kept = found",
        partial(test_independence.test_elements_of_a_plate_that_depend_on_one_another_are_refused, "cumulative sum"),
    ),
    "masks not compared": (
        masks,
        "if np.array_equal(*masks):",
        "if True:",
        partial(test_independence.test_masks_of_latents_must_be_those_of_both_programs, "obs_mask"),
    ),
    "u tempered by scale": (
        density,
        'log_density(site["fn"], latents[name], proposal_dists(site)) for',
        '2.0 * log_density(site["fn"], latents[name], proposal_dists(site)) for',
        by_hand("scaled"),
    ),
    "attributes of users' classes lost": (
        site_functions,
        'type(value).__module__.startswith("numpyro.") and ',
        "",
        partial(test_site_functions.test_classes_of_users_are_called_as_they_are, "attribute"),
    ),
    "one draw for all particles": (
        randomness,
        'numbers.append(self.index.number_in(msg.get("cond_indep_stack", ())))',
        "numbers.append(0)",
        test_losses.test_a_particle_depends_on_the_seed_and_its_index_alone,
    ),
    "density outside of the support": (
        density,
        "return jnp.where(inside, fn.log_prob(feasible(fn, value, proposal_dist)), -jnp.inf)",
        "return fn.log_prob(value)",
        narrower("exponential"),
    ),
    "particles that are not divided over devices": (
        vectorized,
        "numbers = lax.with_sharding_constraint(numbers, automatic_sharding(self.particle_sharding))",
        "pass",
        test_devices.test_particles_over_devices_cost_reductions_of_units_and_of_gradients,
    ),
    "steps that are not finite": (
        updates,
        "chosen(finite, new_guide, Trained(state.phi, state.phi_opt_state))",
        "new_guide",
        test_step.test_an_update_that_overflows_is_not_taken,
    ),
    "a guide that SVI does not train": (
        svi,
        "loss((params, params), insomnia",
        "loss((params, jax.lax.stop_gradient(params)), insomnia",
        test_svi.test_losses_come_as_a_pair_with_the_gradients_of_both,
    ),
    "a finite loss of dead units in SVI": (
        svi,
        "total + jnp.where(aux.alive, 0.0, jnp.inf)",
        "total",
        test_svi.test_stable_updates_do_not_learn_from_particles_outside_of_the_support,
    ),
    "model updated by dead units": (
        updates,
        "chosen(finite & aux.alive, new_model, model)",
        "chosen(finite, new_model, model)",
        test_step.test_dreams_rescue_a_guide_that_has_left_the_support,
    ),
    "state of steps that are not finite": (
        updates,
        "chosen(finite, aux.mutable_state, state.mutable_state)",
        "aux.mutable_state",
        test_mutable_state.test_a_step_that_is_not_finite_leaves_it_as_it_was,
    ),
    "state that no step changes": (
        step_loss,
        "strong(old | new)",
        "strong(new | old)",
        partial(
            test_mutable_state.test_running_statistics_are_those_of_a_plain_loop, test_mutable_state.linen, "plain"
        ),
    ),
    "the sum of both losses for the guide's optimizer": (
        updates,
        'old.guide, aux.metrics["phi_loss"])',
        "old.guide, aux.total)",
        partial(test_optimizers.test_each_side_is_given_its_own_loss, {}),
    ),
    "one randomness for all data": (
        randomness,
        "numbers = [] if self.index.datum is None else [self.index.datum]",
        "numbers = []",
        test_data.test_a_draw_depends_on_seed_datum_and_particle_alone,
    ),
    "gradients of paths without weights": (
        compiled_path,
        "weights[: len(pairs)] = cotangents",
        "weights[: len(pairs)] = 1.0",
        test_branching.test_a_step_by_paths_has_the_expectation_of_one_in_a_plate,
    ),
    "particles of another path": (
        grouped_run,
        "members[which.ravel() == number]",
        "members[::-1][which.ravel() == number]",
        test_branching.test_a_step_by_paths_has_the_expectation_of_one_in_a_plate,
    ),
    "dreams weighed on real data": (
        dreamt,
        "proposal_dists=dists, data=dream.data)",
        "proposal_dists=dists)",
        partial(test_dreamt.test_densities_are_those_by_hand, "hierarchical", None, None),
    ),
    "dreams of the first datum alone": (
        dreamt,
        "number % num_data)",
        "0 * number)",
        test_dreamt.test_dreams_have_the_arguments_of_one_datum_after_another,
    ),
    "dreams ranked by weights of all units": (
        ranking,
        "scored.units.beside(log_w, ",
        "scored.units.beside(0.0 * log_w + log_w.sum(), ",
        test_calibration.test_each_unit_has_weights_of_its_own,
    ),
    "ranks never above ties": (
        ranking,
        "uniform * (1.0 + tied)",
        "uniform * tied",
        partial(test_calibration.test_a_rank_is_any_that_ties_allow, 0, 4),
    ),
    "ranks that are masked": (
        ranking,
        "z if masks.get(name) is None",
        "z if True",
        test_calibration.test_what_is_masked_plays_no_part,
    ),
    "numbers of ranks that do not depend on one another": (
        uniformity,
        "/ (1.0 - last)",
        "/ 1.0",
        partial(test_uniformity.test_p_values_are_exact, 4, 3),
    ),
    "real data in the place of new ones": (
        predict,
        "return draw_site(site, numpyro.prng_key())",
        "return None",
        partial(test_predictive.test_new_data_follow_the_exact_predictive_distribution, "two gaussians"),
    ),
    "new data of the prior": (
        predict,
        'if site["name"] in kept.values:',
        "if False:",
        partial(test_predictive.test_new_data_follow_the_exact_predictive_distribution, "discrete"),
    ),
    "one posterior sample for all draws": (
        predictive_particles,
        "leaf[index.particle]",
        "leaf[0]",
        partial(test_predictive.test_new_data_follow_the_exact_predictive_distribution, "state space"),
    ),
    "covariates that are drawn anew": (
        predict,
        'or site["name"] in given or',
        "or",
        test_predictive.test_conditioned_covariates_stay_and_conditioned_data_do_not,
    ),
    "smoothed weights that are normalised": (
        psis,
        "smoothed + (log_w[smallest] - smoothed[smallest])",
        "smoothed",
        test_psis.test_all_units_equal_arviz_unit_by_unit,
    ),
    "dead particles that come to life": (
        psis,
        "if not live[_tail(log_w)].all():",
        "if False:",
        test_psis.test_the_dead_stay_dead_and_the_live_are_smoothed_by_themselves,
    ),
    "the other of guide and defensive guide": (
        defensive,
        "if not numpyro.sample(",
        "if numpyro.sample(",
        test_one_by_one.test_a_particle_that_runs_alone_comes_from_the_same_of_guide_and_defensive_guide,
    ),
    "an evaluation of the next step's particles": (
        trainer,
        "jax.random.fold_in(jax.random.clone(state.rng_key), _EVALUATION)",
        "jax.random.fold_in(jax.random.clone(state.rng_key), 1)",
        partial(test_evaluate.test_the_same_state_gives_the_same_particles_and_not_those_of_the_next_step, 1),
    ),
    "an evaluation that is always finite": (
        updates,
        "finite = jnp.isfinite(aux.total) & self._has_signal(insomnia, aux)",
        "finite = jnp.array(True)",
        partial(test_evaluate.test_what_is_not_finite_or_dead_is_said, "nan"),
    ),
    "blocks that go on where an evaluation is due": (
        held_out,
        "min(size, self._every - num_done % self._every)",
        "size",
        lambda: test_held_out.test_evaluations_are_those_of_the_states_on_the_way(test_held_out.start_of(0)),
    ),
    "units of plates that some sites are in": (
        description,
        "set.intersection(",
        "set.union(",
        partial(test_describe.test_sentences, "nested"),
    ),
    "wider for narrower": (
        site_tables,
        "if not covers(ours, theirs, bounds_count=True):",
        "if not covers(theirs, ours, bounds_count=True):",
        test_describe.test_branching_programs_of_one_datum_in_words,
    ),
    "p-values of zero": (
        p_values,
        "(1 + ranks) / (1 + num)",
        "ranks / num",
        test_simulation_gap.test_hand_numbers,
    ),
    "p-values of the other side": (
        p_values,
        "np.sum(simulated <= real, axis=0)",
        "np.sum(simulated >= real, axis=0)",
        test_simulation_gap.test_hand_numbers,
    ),
    "the first group for all groups": (
        evidence,
        "return bounds.mean(axis=0)",
        "return bounds[0]",
        compiled_anew(test_posterior_evaluate.test_hand_numbers_on_four_particles),
    ),
    "the spread of two groups as their error": (
        evidence,
        "num_groups < _FEW_GROUPS",
        "num_groups < 2",
        compiled_anew(test_posterior_evaluate.test_hand_numbers_on_four_particles),
    ),
    "errors of means as if of sums": (
        evaluation,
        "axis=-1)) / self.num_units",
        "axis=-1))",
        test_posterior_evaluate.test_evidence_is_the_exact_one_whatever_the_chunks_and_its_errors_are_honest,
    ),
    "a mean of all draws alike": (
        estimate,
        "mean = jnp.sum(w * values, axis=0) / total",
        "mean = jnp.mean(values, axis=0)",
        test_weighted.test_numbers_worked_out_by_hand,
    ),
    "units in the place of other axes": (
        layout,
        "return jnp.moveaxis(apart, here,",
        "return apart if True else jnp.moveaxis(apart, here,",
        partial(test_importance.test_evidence_means_and_variances_are_the_exact_ones, "two gaussians"),
    ),
    "what is not there counts": (
        weighted,
        "if name in self.present else w",
        "if False else w",
        partial(test_importance.test_evidence_means_and_variances_are_the_exact_ones, "branching"),
    ),
    "particles taken whatever they weigh": (
        estimators_resampling,
        "cumulative = jnp.cumsum(w, axis=0)",
        "cumulative = jnp.cumsum(jnp.ones_like(w), axis=0)",
        compiled_anew(partial(test_weighted.test_resampling_is_unbiased, "systematic")),
    ),
    "groups in the order in which they ran": (
        ragged,
        "order = np.argsort(np.concatenate(members))",
        "order = np.arange(sum(map(len, members)))",
        test_ragged.test_groups_of_particles,
    ),
    "a constant of a unit in all of them": (
        density,
        'own = {frame.dim for frame in self.frames & set(site["cond_indep_stack"])}',
        "own = set()",
        compiled_anew(test_weighted.test_a_constant_of_a_unit_is_that_of_the_unit),
    ),
    "evidence of NaN as of data that cannot be": (
        evidence_particle,
        "jnp.where(has_nan, jnp.nan, draw.log_weights)",
        "draw.log_weights",
        compiled_anew(test_posterior_evaluate.test_dead_units_and_nan_are_said_and_leave_the_others_alone),
    ),
    "held parameters not detached": (
        held,
        "return lax.stop_gradient(leaf) if is_float(leaf) else leaf",
        "return leaf",
        partial(test_held.test_a_loss_is_that_of_a_guide_with_the_numbers_in_it, rws_jax.sleep_phi_loss, "vectorized"),
    ),
    "held parameters at their initial values": (
        program,
        "held=self.model.params",
        "held=None",
        partial(test_held.test_a_step_is_that_of_a_guide_with_the_numbers_in_it, "vectorized"),
    ),
    "held parameters for the guide's own": (
        sites,
        ' and not site.get("is_held")',
        "",
        test_held.test_they_are_described_as_the_models,
    ),
    "scales of a guide trained": (
        networks,
        'lax.stop_gradient((tree["shift"], tree["scale"]))',
        '(tree["shift"], tree["scale"])',
        compiled_anew(partial(test_routes_of_guides.test_a_step_moves_all_weights, "both")),
    ),
    "pooled data summed": (
        context,
        "value = jnp.mean(value, axis=axis)",
        "value = jnp.sum(value, axis=axis)",
        test_plates.test_exchangeable_observations_are_pooled,
    ),
    "latents not read by later ones": (
        proposing,
        "self.drawn.append(Drawn(name, embedded_draw(tree, features), place.data_plates))",
        "Drawn(name, embedded_draw(tree, features), place.data_plates)",
        partial(test_plates.test_proposals_read_each_other_only_where_they_should, True),
    ),
    "smoothing in the wrong direction": (
        context,
        "reverse=not reverse",
        "reverse=reverse",
        partial(test_sequences.test_a_step_reads_the_data_from_there_on_and_the_draws_before, False),
    ),
    "a scale of the model left on the guide": (
        proposing,
        'msg["scale"] = place.subsampling',
        "place.subsampling",
        compiled_anew(partial(test_compile_guide.test_the_mean_weight_is_the_exact_evidence, "tempered")),
    ),
    "a joint density counted for each element": (
        elements,
        "share = joint.reshape(joint.shape + (1,) * len(shape)) / math.prod(shape)",
        "share = joint.reshape(joint.shape + (1,) * len(shape))",
        compiled_anew(partial(test_compile_guide.test_the_mean_weight_is_the_exact_evidence, "repeated")),
    ),
    "the first rows for those of a minibatch": (
        axes,
        "return jnp.take(value, plate.indices, axis=axis)",
        "return jnp.take(value, jnp.arange(num), axis=axis)",
        partial(test_plates.test_minibatches_that_the_plate_takes_read_their_own_rows, 5),
    ),
    "weights of a mixture that do not sum to one": (
        mixture,
        "jax.nn.log_softmax(log_weights), jnp.concatenate",
        "log_weights, jnp.concatenate",
        compiled_anew(partial(test_proposals.test_densities_normalise, *test_proposals.PRIORS[5].values)),
    ),
    "a component of a mixture without its scale": (
        reals,
        "return (x - location) / scale, log_det - log_scale, x",
        "return (x - location) / scale, log_det, x",
        compiled_anew(partial(test_proposals.test_densities_normalise, *test_proposals.PRIORS[5].values)),
    ),
    "a prior trained through its proposal": (
        arrays,
        "stop = lambda leaf: lax.stop_gradient(leaf) if isinstance(leaf, Tracer) else leaf",
        "stop = lambda leaf: leaf",
        test_proposals.test_no_gradient_reaches_the_prior,
    ),
    "local particles summed and not averaged": (
        nested_weights,
        "_summed(weights.bound(log_w[number], -(num_dims + 1)), levels[number])",
        "_summed(weights.bound(log_w[number], -(num_dims + 1)) + jnp.log(log_w[number].shape[-(num_dims + 1)]),"
        " levels[number])",
        nested_expected("independent", "mean-field"),
    ),
    "a local weight without those around it": (
        nested_weights,
        "w.append(jnp.expand_dims(w[parent], axis) * weights.normalise(log_w[number], axis))",
        "w.append(jnp.ones_like(jnp.expand_dims(w[parent], axis)) * weights.normalise(log_w[number], axis))",
        nested_expected("common", "dependent"),
    ),
    "elements summed over the wrong plate": (
        nested_weights,
        "jnp.sum(x, axis=level.summed, keepdims=True)",
        "jnp.sum(x, axis=-1, keepdims=True)",
        partial(test_nested_weights.test_weights_are_those_of_a_recursion_over_all_particles, "units to the right"),
    ),
    "a local baseline of 1/K": (
        nested_weights,
        "share.append(share[parent] / log_w[number].shape[axis])",
        "share.append(share[parent])",
        test_nested_weights.test_hand_numbers_of_two_globals_and_one_element,
    ),
    "a local baseline that depends on its own draw": (
        nested_weights,
        "others_alive = weights.num_others_alive(log_w[number], axis) > 0",
        "others_alive = jnp.expand_dims(weights.alive(log_w[number], axis), axis)",
        nested_dying("independent", "dependent"),
    ),
    "a local baseline in dead units": (
        nested_weights,
        "is_whole = _num_dead(parent, own, log_w, levels, num_dims) == 0",
        "is_whole = _num_dead(parent, own, log_w, levels, num_dims) >= 0",
        test_nested_weights.test_two_elements_multiply,
    ),
    "a baseline that forgets what is further out": (
        nested_weights,
        "around[parent] & is_whole",
        "is_whole",
        partial(
            test_nested_weights.test_baselines_do_not_depend_on_the_particle_itself_and_are_zero_in_dead_units,
            "three levels",
        ),
    ),
    "dead draws of the level itself not counted": (
        nested_weights,
        "count = (own[number] == -jnp.inf).astype(int)",
        "count = jnp.zeros_like(own[number], int)",
        partial(
            test_nested_weights.test_baselines_do_not_depend_on_the_particle_itself_and_are_zero_in_dead_units,
            "siblings",
        ),
    ),
    "nested weights not detached": (
        nested,
        "nested_weights(lax.stop_gradient(self.own_log_weights)",
        "nested_weights((self.own_log_weights)",
        nested_expected("common", "mean-field"),
    ),
    "nested proposals not detached": (
        nested,
        "weights.log_weights(p, lax.stop_gradient(q))",
        "weights.log_weights(p, q)",
        nested_expected("common", "mean-field"),
    ),
    "common local numbers in place of independent ones": (
        program,
        "numbers[-1] if self.common else",
        "numbers[-1] if not self.common else",
        compiled_anew(test_nested.test_which_draws_are_the_same),
    ),
    "two local particles with one number": (
        program,
        "outer * self.size + own",
        "outer + own",
        compiled_anew(test_nested.test_which_draws_are_the_same),
    ),
    "a local number of the wrong level": (
        program,
        "max(around)[1]",
        "min(around)[1]",
        compiled_anew(test_nested.test_which_draws_are_the_same),
    ),
    "a local number that is not folded in the body of a scan": (
        handlers,
        'self.index.number_in(msg["cond_indep_stack"])',
        "self.index.particle",
        compiled_anew(test_nested.test_which_draws_are_the_same_in_a_scan),
    ),
    "a key in the body of a scan that depends on the particle": (
        randomness,
        'msg["type"] == "control_flow" or msg.get("is_of_site")',
        'msg["type"] == "control_flow"',
        compiled_anew(test_nested.test_which_draws_are_the_same_in_a_scan),
    ),
    "data of inner plates outside of them": (
        levels,
        "_innermost(within, sets) == plates)",
        "within == plates)",
        nested_by_hand("three levels"),
    ),
    "plates of the parent summed as well": (
        levels,
        "summed=tuple(sorted(frame.dim for frame in plates - outer))",
        "summed=tuple(sorted(frame.dim for frame in plates))",
        nested_by_hand("three levels"),
    ),
    "crossed plates not refused": (
        levels,
        "if not outer < inner:",
        "if not outer:",
        partial(test_levels.test_plates_that_cannot_have_local_particles_are_refused_by_init_and_losses, "crossed"),
    ),
    "values that bodies close over left in place": (
        lockstep,
        "inputs = [*own_consts, *own_carry,",
        "own_consts = [False] * len(own_consts)\n        inputs = [*own_consts, *own_carry,",
        filter_expected,
    ),
    "carries left in place by resampling": (
        resampled,
        "state = state._replace(own=[_taken(leaf, ancestor) for leaf in state.own])",
        "state = state._replace(own=[_taken(leaf, own) for leaf in state.own])",
        filter_by_hand,
    ),
    "the mean weight lost by resampling": (
        resampled,
        "lax.stop_gradient(weights.bound(all_log_w)) + weights.gradient_only(path)",
        "weights.gradient_only(path)",
        filter_by_hand,
    ),
    "the gradient of the path lost by resampling": (
        resampled,
        "lax.stop_gradient(weights.bound(all_log_w)) + weights.gradient_only(path)",
        "lax.stop_gradient(weights.bound(all_log_w))",
        filter_by_hand,
    ),
    "the gradient of a filter in place of that of paths": (
        resampled,
        "lax.stop_gradient(weights.bound(all_log_w)) + weights.gradient_only(path)",
        "weights.bound(all_log_w)",
        filter_by_hand,
    ),
    "draws weighed once they are resampled": (
        resampled,
        "Recorded(log_w, scored.log_q, scored.latents, ancestor)",
        "Recorded(after, scored.log_q, scored.latents, ancestor)",
        filter_by_hand,
    ),
    "a number of its own for each particle that is resampled": (
        resampled,
        "jax.random.fold_in(rng_key, position)",
        "jax.random.fold_in(jax.random.fold_in(rng_key, position), own)",
        filter_by_hand,
    ),
    "the same number at all steps": (
        resampled,
        "jax.random.fold_in(rng_key, position)",
        "jax.random.clone(rng_key)",
        filter_by_hand,
    ),
    "particles of the last step resampled": (
        resampled,
        " & (position != last)",
        "",
        filter_by_hand,
    ),
    "latents before a scan weighed by its first step": (
        resampled,
        "at_end = weights.normalise(lax.stop_gradient(self.log_weights))",
        "at_end, number = weights.normalise(log_w), jnp.indices(log_w.shape)[0]",
        filter_expected,
    ),
    "latents before a scan weighed by those in their places": (
        resampled,
        "origin = jax.tree.map(lambda leaf: _taken(leaf, ancestor), origin)",
        "origin = origin",
        filter_expected,
    ),
    "paths without their ancestors": (
        resampled,
        "number = _taken(ancestor, number)",
        "number = number",
        smoothed,
    ),
    "ancestors at numbers that all are up": (
        estimators_resampling,
        "(jnp.arange(num) + jax.random.uniform(rng_key, dtype=log_w.dtype)) / num",
        "(jnp.arange(num) + 0.5 + 0.5 * jax.random.uniform(rng_key, dtype=log_w.dtype)) / num",
        filter_by_hand,
    ),
    "a local particle that goes with another one around it": (
        nested_choice,
        "outer = [indices[other] for other in level.chain[:-1]]",
        "outer = [0 * indices[other] for other in level.chain[:-1]]",
        drawn_anew(test_structured.test_chosen_local_particles_go_with_what_is_around_them),
    ),
    "local particles chosen whatever they weigh": (
        nested_choice,
        "own_log_w = _taken(log_w[number], outer, 0)",
        "own_log_w = 0.0 * _taken(log_w[number], outer, 0)",
        drawn_anew(test_structured.test_chosen_local_particles_follow_the_posterior),
    ),
    "filtering by the weights at the end": (
        resampled,
        "WeighedSteps(recorded.latents, recorded.log_w)",
        "WeighedSteps(recorded.latents, log_weight + 0.0 * recorded.log_w)",
        compiled_anew(
            partial(test_structured.test_filtering_draws_have_the_weights_of_the_data_up_to_their_step, None)
        ),
    ),
    "a closed-over number that tells what is missing, not moved": (
        lockstep,
        "dependence(traced, also_missing=True)",
        "dependence(traced)",
        test_lockstep.test_what_is_a_number_of_a_latent_moves_too,
    ),
    "a datum by its number within the chunk": (
        data_chunks,
        "lambda datum: number + self.num * datum",
        "lambda datum: datum",
        partial(test_data_chunks.test_losses_and_gradients_do_not_depend_on_the_size_of_chunks, "phi, defensive"),
    ),
    "the gradient of the last chunk alone": (
        accumulated,
        "_added(old, own) for old, own in",
        "_added([0.0 * x for x in old], own) for old, own in",
        partial(test_data_chunks.test_losses_and_gradients_do_not_depend_on_the_size_of_chunks, "phi, defensive"),
    ),
    "covariates apart from their data": (
        arguments,
        "if name in dreams.data else dreams.data",
        "if name in dreams.data else {}",
        test_plates.test_covariates_stay_with_their_data,
    ),
    "paths taken by whoever draws their last value": (
        unrolled,
        "begun.is_taken & jnp.all(end.value == value)",
        "jnp.all(end.value == value)",
        partial(test_all_paths.test_a_jitted_loss_and_its_gradient_are_those_of_unjitted_particles, "nested", {}),
    ),
    "a number for values that are not known": (
        unrolled,
        "missing(jnp.result_type(*arrays))",
        "0",
        test_all_paths.test_a_value_outside_of_the_known_support_makes_a_step_that_is_not_finite,
    ),
    "paths counted that nobody takes": (
        all_paths,
        "| any_taken[number]",
        "| True",
        test_all_paths.test_paths_that_nobody_takes_are_not_counted,
    ),
    "particles that leave a tree left in it": (
        compiled_tree,
        "jnp.append(is_taken, True)",
        "is_taken[: len(self._unrolled.traces)]",
        partial(test_trees.test_particles_that_leave_run_along_their_paths, {}),
    ),
    "gradients of the particles of a tree unweighted": (
        compiled_tree,
        "weights[: len(cotangents)] = cotangents",
        "weights[:] = 1.0",
        partial(test_trees.test_particles_that_leave_run_along_their_paths, {}),
    ),
    "a derivative that is not finite on a path that is not taken": (
        grouped_run,
        "if not all(is_safe for *_, is_safe in fetched):",
        "if False:",
        test_trees.test_derivatives_along_paths_that_are_not_taken_do_no_harm,
    ),
    "functions merged whatever their derivatives": (
        merged,
        '| {"rule": rule}',
        "",
        partial(test_merged.test_what_has_another_derivative_is_kept, "custom_jvp of a function of JAX"),
    ),
    "zeros merged whatever their signs": (
        merged,
        "np.asarray(value, dtype).tobytes()",
        "tuple(np.ravel(value).tolist())",
        test_merged.test_constants_are_compared_to_the_last_bit,
    ),
    "the sum over categories not differentiated": (
        log_probs,
        "d_chosen - jnp.broadcast_to(jnp.sum(probs * d_logits, axis=-1), log_prob.shape)",
        "d_chosen",
        partial(test_log_probs.test_the_density_of_a_category_is_the_one_of_numpyro, 3, (4,), (4,)),
    ),
}


def test_what_a_mutation_replaces_occurs_once():
    """The others are slow, and not all of them are run each time: this finds one whose line has been rewritten."""
    counts = {name: inspect.getsource(module).count(old) for name, (module, old, *_) in MUTATIONS.items()}
    assert not [name for name, count in counts.items() if count != 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_turns_a_test_red(name, mutate):
    module, old, new, test = MUTATIONS[name]
    mutate(module, old, new)
    with pytest.raises((AssertionError, pytest.fail.Exception)):  # the latter where an error is not raised
        test()


@pytest.mark.slow
def test_what_was_replaced_is_restored(mutate):
    original = sleep.dream_loss.__code__
    mutate(sleep, "return -dreams.scale", "return dreams.scale")
    assert sleep.dream_loss.__code__ != original
    mutate(sleep, "return -dreams.scale", "return -dreams.scale")
    assert sleep.dream_loss.__code__.co_code == original.co_code
