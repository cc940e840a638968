"""Optimizers of all kinds that optax has: those that accumulate, that take the loss, and that ask for more."""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from optax import contrib

import rws_jax
from tests import models
from tests.checks.test_errors import check
from tests.training.test_step import again, gradients_of

DATA = models.BINARY_DATA


def make(**options):
    return rws_jax.make_step(models.binary_model, models.binary_guide, **{"num_particles": 4, **options})


def both(optimizer):
    return {"theta_optimizer": optimizer, "phi_optimizer": optimizer}


def recorder():
    """Leaves parameters as they are, and keeps the loss that it was given."""

    def update(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(jnp.zeros_like, updates), value

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)


# accumulation


def test_multi_steps_move_by_the_mean_gradient_of_their_steps():
    rws, plain = make(**both(optax.MultiSteps(optax.scale(1.0), 2))), make(**both(optax.scale(1.0)))
    state = rws.init(jax.random.key(0), DATA)
    bare = plain.init(jax.random.key(0), DATA).plain
    first = gradients_of(plain, bare, DATA)[:2]
    middle, _ = rws.step(state, DATA)
    chex.assert_trees_all_equal(middle.plain[:2], bare[:2])
    second = gradients_of(plain, again(bare)._replace(rng_key=jax.random.clone(middle.rng_key)), DATA)[:2]
    last, _ = rws.step(middle, DATA)
    expected = jax.tree.map(lambda old, a, b: old + (a + b) / 2, (bare.theta, bare.phi), first, second)
    chex.assert_trees_all_close(last.plain[:2], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_multi_steps_accumulate_nothing_from_steps_that_are_not_finite():
    rws = make(**both(optax.MultiSteps(optax.adam(0.1), 3)), phi_steps=2)
    state, _ = rws.step(rws.init(jax.random.key(0), DATA), DATA)
    accumulated = state.theta_opt_state.acc_grads, state.phi_opt_state.acc_grads
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(accumulated[0]))
    assert (int(state.theta_opt_state.mini_step), int(state.phi_opt_state.mini_step)) == (1, 2)
    new, info = rws.step(state, jnp.full_like(DATA, jnp.nan))
    assert not bool(info.finite)
    chex.assert_trees_all_equal(new[:4], state[:4])


# the loss as an argument


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"insomnia": 0.5, "phi_steps": 2}, {"insomnia": optax.constant_schedule(0.3)}])
def test_each_side_is_given_its_own_loss(options):
    rws = make(**both(optax.chain(optax.clip(1.0), recorder())), **options)
    state, info = rws.step(rws.init(jax.random.key(0), DATA), DATA)
    assert state.theta_opt_state[1] == info.wake_theta_loss
    assert state.phi_opt_state[1] == info.phi_loss
    assert info.wake_theta_loss != info.phi_loss


@pytest.mark.slow
def test_shared_parameters_are_given_the_sum_of_both_losses():
    """It is the sum whose gradients they are trained on."""
    shared = lambda program: lambda x: (numpyro.param("shared", 0.0), program(x))
    programs = shared(models.binary_model), shared(models.binary_guide)
    rws = rws_jax.make_step(*programs, num_particles=4, shared_params=True, **both(recorder()))
    state, info = rws.step(rws.init(jax.random.key(0), DATA), DATA)
    assert jnp.allclose(state.theta_opt_state, info.wake_theta_loss + info.phi_loss, rtol=1e-6)
    assert state.phi_opt_state == info.phi_loss


@pytest.mark.slow
def test_polyak_steps_are_those_by_hand():
    """Polyak's step is the gradient times (loss - minimum) / |gradient|^2."""
    minimum = 1.0
    polyak = optax.polyak_sgd(max_learning_rate=1e6, f_min=minimum)
    rws, plain = make(**both(polyak)), make(**both(optax.scale(1.0)))
    state, bare = rws.init(jax.random.key(0), DATA), plain.init(jax.random.key(0), DATA)
    *grads, info = gradients_of(plain, bare, DATA)
    new, _ = rws.step(state, DATA)
    for old, gradient, loss, found in zip(
        bare.plain[:2], grads, (info.wake_theta_loss, info.phi_loss), new.plain[:2], strict=True
    ):
        size = (loss - minimum) / optax.tree.norm(gradient) ** 2
        chex.assert_trees_all_close(found, jax.tree.map(lambda x, g, s=size: x - s * g, old, gradient), rtol=1e-5)


def by_name(params):
    return {name: "theta" if name == "p1" else "rest" for name in params}


TAKE_THE_LOSS = {
    "plateau": lambda: optax.chain(optax.adam(0.1), contrib.reduce_on_plateau(patience=1)),
    "momo": lambda: contrib.momo(0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.polyak_sgd(), 2),
    "by_function": lambda: optax.multi_transform({"theta": optax.polyak_sgd(), "rest": optax.adam(0.1)}, by_name),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKE_THE_LOSS)
def test_optimizers_that_take_the_loss_train_in_one_trace(name):
    count = 0

    def model(x):
        nonlocal count
        count += 1
        models.binary_model(x)

    options = both(TAKE_THE_LOSS[name]()) | {"num_particles": 4, "insomnia": 0.5, "phi_steps": 2}
    rws = rws_jax.make_step(model, models.binary_guide, **options)
    state, _ = rws.step(rws.init(jax.random.key(0), DATA), DATA)
    traced = count
    for _ in range(4):
        state, info = rws.step(state, DATA)
        assert bool(info.finite)
    bad, info = rws.step(state, jnp.full_like(DATA, jnp.nan))
    assert count == traced
    assert not bool(info.finite)
    chex.assert_trees_all_equal(bad[:4], state[:4])


@pytest.mark.slow
def test_an_optimizer_without_room_for_the_loss_is_not_given_it():
    """`sam` claims to take any keyword argument, and does not."""
    rws = make(**both(contrib.sam(optax.sgd(0.1), optax.sgd(0.1))))
    _, info = rws.step(rws.init(jax.random.key(0), DATA), DATA)
    assert bool(info.finite)


@pytest.mark.slow
def test_labels_of_the_real_parameters_are_met_by_init():
    """A small tree of other names tells nothing about them."""
    state = make(phi_optimizer=optax.adam(0.1)).init(jax.random.key(0), DATA)
    labels = dict.fromkeys(state.phi, "adam") | {sorted(state.phi)[0]: "loss"}
    transforms = {"adam": optax.adam(0.1), "loss": recorder()}
    rws = make(phi_optimizer=optax.multi_transform(transforms, labels))
    state, info = rws.step(rws.init(jax.random.key(0), DATA), DATA)
    assert state.phi_opt_state.inner_states["loss"].inner_state == info.phi_loss


def test_where_there_is_no_loss_there_is_nothing_to_update():
    """In pure sleep, wake is not run for a model without parameters, and no number stands in for its loss."""

    def model(x):
        numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0) + 0.0 * x, 1.0))

    rws = rws_jax.make_step(model, guide, insomnia=0.0, **both(recorder()))
    state, info = rws.step(rws.init(jax.random.key(0), 0.5), 0.5)
    assert info.wake_theta_loss is None
    assert state.theta_opt_state == 0.0
    assert state.phi_opt_state == info.sleep_phi_loss


# what a step does not have

CANNOT = {
    "lbfgs": (optax.lbfgs, ("'value_fn'", "linesearch=None")),
    "line_search": (
        lambda: optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5)),
        ("'value_fn'",),
    ),
    "accumulated": (lambda: optax.MultiSteps(optax.lbfgs(), 2), ("'value_fn'",)),
    "sophia": (lambda: contrib.sophia(0.1), ("'obj_fn'",)),
    "sam": (lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True), ("'grad_fn'",)),
    "by_function": (
        lambda: optax.multi_transform({"theta": optax.adam(0.1), "rest": optax.lbfgs()}, by_name),
        ("'value_fn'",),
    ),
    "another": (
        lambda: optax.GradientTransformation(optax.identity().init, lambda g, s, p=None, *, batch, **_: (g, s)),
        ("asks for 'batch'",),
    ),
    "lookahead": (lambda: optax.lookahead(optax.adam(0.1), 5, 0.5), ("of a kind of its own", "by itself")),
}


@pytest.mark.parametrize("name", CANNOT)
def test_an_optimizer_that_needs_more_than_a_step_has_is_refused_by_make_step(name):
    optimizer, words = CANNOT[name]
    for option in ("theta_optimizer", "phi_optimizer"):
        with pytest.raises(TypeError) as error:
            make(**{option: optimizer()})
        check(error, TypeError, option, *words)
        assert error.value.__cause__ is not None


def test_what_only_real_parameters_show_is_said_by_init():
    state = make().init(jax.random.key(0), DATA)
    transforms = {"a": optax.adam(0.1), "b": optax.lbfgs()}
    labels = dict.fromkeys(state.phi, "a") | {sorted(state.phi)[0]: "b"}
    rws = make(phi_optimizer=optax.multi_transform(transforms, labels))
    with pytest.raises(TypeError) as error:
        rws.init(jax.random.key(0), DATA)
    check(error, TypeError, "'phi_optimizer'", "'value_fn'")
    rws = make(phi_optimizer=optax.multi_transform({"a": optax.adam(0.1)}, {"other": "a"}))
    with pytest.raises(TypeError) as error:
        rws.init(jax.random.key(0), DATA)
    check(error, TypeError, "'phi_optimizer' cannot update the parameters", *state.phi)
    rws = make(phi_optimizer=optax.stateless(lambda updates, params: updates | {"a": updates["of_others"]}))
    with pytest.raises(TypeError) as error:
        rws.init(jax.random.key(0), DATA)
    check(error, TypeError, "'phi_optimizer' cannot update the parameters", "KeyError: 'of_others'")
