"""`fit` with held-out data: the training is that without them, and what is reported is what `evaluate` says."""

import pickle
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rws_jax
from rws_jax.training import blocks
from rws_jax.training import fit as fit_module
from tests import models
from tests.checks.test_errors import check
from tests.training.test_fit import compiled_in

X, HELD_OUT = models.BINARY_DATA, jnp.array([1.0, 0.0, 0.0, 1.0, 1.0])
RWS = rws_jax.make_step(models.binary_model, models.binary_guide)
pytestmark = pytest.mark.usefixtures("allow_key_reuse")  # the same start for all


def evaluate(state):
    return RWS.evaluate(state, HELD_OUT)


def start_of(seed):
    return RWS.init(jax.random.key(seed), X)


@pytest.fixture(scope="module")
def start():
    return start_of(0)


def fit(state, num_steps, *args, **options):
    return rws_jax.fit(RWS.step, state, num_steps, *args, **{"progress_bar": False, "evaluate": evaluate, **options})


def without(infos):
    return infos._replace(held_out=None)


def test_evaluations_are_those_of_the_states_on_the_way(start):
    """Blocks of three end where an evaluation is due, after four steps and eight; the last has no evaluation."""
    seen = []
    callback = lambda state, infos: seen.append((int(state.step), len(infos.finite), infos.held_out))
    found, infos = fit(start, 10, X, evaluate_every=4, steps_per_block=3, callback=callback)
    assert [(step, size) for step, size, _ in seen] == [(3, 3), (4, 1), (7, 3), (8, 1), (10, 2)]
    expected, plain = fit(start, 10, X, evaluate=None)
    chex.assert_trees_all_equal((found, without(infos)), (expected, plain))
    assert plain.held_out is None
    assert infos.held_out.step.tolist() == [4, 8]
    state = start
    for step in range(8):
        state, _ = RWS.step(state, X)
        if step == 3:
            first = evaluate(state)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, evaluate(state))
    chex.assert_trees_all_equal(infos.held_out, both)
    assert [None if each is None else each.step.tolist() for *_, each in seen] == [None, [4], None, [8], None]
    assert "held_out=" in repr(infos)


def test_by_default_each_block_is_followed_by_one(start):
    _, infos = fit(start, 7, X, steps_per_block=3)
    assert infos.held_out.step.tolist() == [3, 6, 7]
    _, infos = fit(start, 100, batches=[X] * 3, evaluate_every=5)
    assert infos.held_out is None
    _, infos = fit(start, 3, X, evaluate_every=3)
    assert infos.held_out.step.tolist() == [3]


def test_long_fits_compile_one_loop_that_ends_at_evaluations(start, caplog, monkeypatch):
    """No block is longer than the time between two of them."""
    monkeypatch.setattr(blocks, "LOOP_FROM", 1)
    rws = rws_jax.make_step(models.binary_model, models.binary_guide)
    found = []
    train = lambda: found.append(
        rws_jax.fit(rws.step, start, 15, X, evaluate=evaluate, evaluate_every=5, progress_bar=False)
    )
    assert compiled_in(caplog, train) == ["jit(block)"]
    state, infos = found[0]
    expected, _ = fit(start, 15, X)
    assert infos.held_out.step.tolist() == [5, 10, 15]
    chex.assert_trees_all_close(state.theta, expected.theta, rtol=1e-5)
    assert infos.finite.shape == (15,)


def test_batches_may_end(start):
    state, infos = fit(start, 100, batches=[X] * 5, evaluate_every=2, steps_per_block=50)
    assert int(state.step) == 5
    assert (infos.finite.shape, infos.held_out.step.tolist()) == ((5,), [2, 4])


def test_ctrl_c_in_an_evaluation_keeps_the_block_before_it(start):
    def interrupted(state):
        if state.step == 8:
            raise KeyboardInterrupt
        return evaluate(state)

    state, infos = fit(start, 100, X, evaluate=interrupted, evaluate_every=4)
    assert int(state.step) == 8
    assert (infos.finite.shape, infos.held_out.step.tolist()) == ((8,), [4])


@pytest.mark.slow
def test_seeds_have_evaluations_of_their_own():
    states = jax.vmap(lambda key: RWS.init(key, X))(jax.random.split(jax.random.key(0), 3))
    of_seeds = jax.vmap(evaluate)
    step = jax.vmap(RWS.step, in_axes=(0, None))
    found, infos = rws_jax.fit(step, states, 4, X, evaluate=of_seeds, evaluate_every=2, progress_bar=False)
    assert infos.held_out.wake_theta_loss.shape == (2, 3)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[-1], infos.held_out), of_seeds(found))


@pytest.mark.slow
def test_a_state_that_is_given_away_is_evaluated_before(start):
    step = jax.jit(RWS.step, donate_argnums=0)
    _, infos = rws_jax.fit(step, start, 4, X, evaluate=evaluate, evaluate_every=2, progress_bar=False)
    _, expected = fit(start, 4, X, evaluate_every=2)
    chex.assert_trees_all_close(infos.held_out, expected.held_out, rtol=1e-5)


def test_training_stops_when_held_out_data_say_so(start):
    """Patience of three steps, on losses that are lowest after the second."""
    losses = iter([5.0, 3.0, 4.0, 3.5, 3.2, 1.0])
    kept = {"loss": np.inf}

    def callback(state, infos):
        loss = float(infos.held_out.wake_theta_loss[-1])
        if loss < kept["loss"]:
            kept.update(loss=loss, state=state)
        return state.step - kept["state"].step >= 3

    made_up = lambda state: evaluate(state)._replace(wake_theta_loss=jnp.array(next(losses)))
    state, infos = fit(start, 100, X, evaluate=made_up, callback=callback)
    assert infos.held_out.wake_theta_loss.tolist() == pytest.approx([5.0, 3.0, 4.0, 3.5, 3.2])
    assert (int(state.step), int(kept["state"].step)) == (5, 2)


def test_an_error_has_the_evaluations_too(start):
    bad = jnp.full_like(X, jnp.nan)
    with pytest.raises(rws_jax.NonFiniteError) as error:
        fit(start, 8, batches=[X, X, *[bad] * 6], evaluate_every=2, max_nonfinite_steps=1)
    again = pickle.loads(pickle.dumps(error.value))
    assert again.infos.held_out.step.tolist() == [2, 4]
    assert again.infos.finite.tolist() == [True, True, False, False]


# the bar


@pytest.mark.parametrize("kind", ["wake", pytest.param("pure sleep", marks=pytest.mark.slow)])
def test_at_80_columns_the_bar_shows_the_held_out_loss(start, capsys, monkeypatch, kind):
    monkeypatch.setattr(fit_module, "tqdm", partial(fit_module.tqdm, ncols=80))
    insomnia = {"wake": 1.0, "pure sleep": 0.0}[kind]
    rws = rws_jax.make_step(models.binary_model, models.binary_guide, num_particles=100, insomnia=insomnia)
    held_out = lambda state: rws.evaluate(state, HELD_OUT)
    state = rws.init(jax.random.key(0), X)
    _, infos = rws_jax.fit(rws.step, state, 4000, X, evaluate=held_out, callback=lambda *_: True)
    shown = capsys.readouterr().err.replace("\n", "").split("\r")
    assert max(map(len, shown)) <= 80
    means = infos.ess_mean.mean(), infos.wake_theta_loss.mean(), infos.held_out.wake_theta_loss[-1]
    assert "ESS={:.4g} of 100, theta loss={:.4g}, held-out={:.4g}]".format(*means) in shown[-1]
    assert any(line.startswith("compiling: ") for line in shown)


# errors


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"evaluate": 3}, TypeError, "option 'evaluate' has the wrong type"),
        ({"evaluate": RWS.evaluate}, TypeError, "called with the state alone"),
        ({"evaluate": None, "evaluate_every": 5}, ValueError, "not what to evaluate"),
        ({"evaluate_every": 0}, ValueError, "'evaluate_every'"),
        ({"evaluate_every": 2.5}, TypeError, "'evaluate_every'"),
        ({"evaluate_every": 11}, ValueError, "11, in a fit of 10"),
        ({"evaluate": lambda state: 0.5}, TypeError, "option 'evaluate' does not return an info"),
    ],
)
def test_bad_options_are_refused(start, options, kind, word):
    with pytest.raises(kind) as error:
        fit(start, 10, X, **options)
    check(error, kind, word)
