"""`fit`: the steps of a plain loop, and nothing lost when they stop early."""

import gc
import pickle
import re
import weakref
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import rws_jax
from rws_jax.programs.program import Arguments
from rws_jax.training import blocks
from rws_jax.training import fit as fit_module
from tests import models
from tests.checks.test_errors import check

X = models.BINARY_DATA
RWS = rws_jax.make_step(models.binary_model, models.binary_guide)
pytestmark = pytest.mark.usefixtures("allow_key_reuse")  # the same start for all


@pytest.fixture(scope="module")
def start():
    return RWS.init(jax.random.key(0), X)


def fit(state, num_steps, *args, **options):
    return rws_jax.fit(RWS.step, state, num_steps, *args, **{"progress_bar": False, **options})


def scan(state, num_steps):
    return jax.lax.scan(lambda state, _: RWS.step(state, X), state, length=num_steps)


def assert_close(found, expected):
    """Of compiled programs that differ, XLA may have rounded in another order."""
    (found, found_infos), (expected, infos) = found, expected
    chex.assert_trees_all_equal(found.rng_key, expected.rng_key)
    without_key = lambda state: state._replace(rng_key=None)
    chex.assert_trees_all_close((without_key(found), found_infos), (without_key(expected), infos), rtol=1e-5)


@pytest.fixture
def loops(monkeypatch):
    """Short fits compile loops too, as long ones do."""
    monkeypatch.setattr(blocks, "LOOP_FROM", 1)


def compiled_in(caplog, function):
    """What is compiled of programs as `function` runs."""
    caplog.clear()
    with jax.log_compiles():
        function()
    found = [re.search(r"Finished XLA compilation of (\S+)", message) for message in caplog.messages]
    names = "jit(step)", "jit(once)", "jit(block)"  # not what copies and stacks
    return [match[1] for match in found if match and match[1] in names]


@pytest.mark.floors
def test_a_fit_is_a_scan_whatever_its_blocks(start, caplog, loops):
    """One compiled block, and nothing else for the last one, which has fewer steps, and for later fits."""
    expected = scan(start, 23)
    step = rws_jax.make_step(models.binary_model, models.binary_guide).step
    found = []
    train = lambda num_steps: found.append(
        rws_jax.fit(step, start, num_steps, X, steps_per_block=5, progress_bar=False)
    )
    step(start, X)
    assert compiled_in(caplog, lambda: train(23)) == ["jit(block)"]
    assert compiled_in(caplog, lambda: train(17)) == []
    assert_close(found[0], expected)
    state, infos = found[1]
    assert int(state.step) == 17
    assert all(leaf.shape == (17,) for leaf in jax.tree.leaves(infos))


@pytest.mark.floors
def test_a_block_is_a_loop_whose_length_xla_knows(start):
    """If it does not, a GPU asks the host after each step whether there is another."""
    text = blocks._compiled_of(RWS.step).block.lower(7, start, Arguments((X,), {})).compile().as_text()
    assert re.search(r'"known_trip_count":\{"n":"7"\}', text)


@pytest.mark.parametrize("kind", models.rows(["step", "jit", "function", "vmap"], fast=["step"]))
def test_short_fits_compile_nothing_that_has_been_compiled(start, caplog, kind):
    """Whether by a call of the step itself, or by an earlier fit; with minibatches or without."""
    rws = rws_jax.make_step(models.binary_model, models.binary_guide)
    of_seeds = jax.vmap(lambda key: rws.init(key, X))(jax.random.split(jax.random.key(0), 2))

    def step(*args):
        return rws.step(*args)

    steps = {"step": rws.step, "jit": jax.jit(step), "function": step, "vmap": jax.vmap(rws.step, in_axes=(0, None))}
    step, state = steps[kind], of_seeds if kind == "vmap" else start
    run = lambda num_steps, *args, **options: rws_jax.fit(step, state, num_steps, *args, progress_bar=False, **options)
    is_jitted = kind in ("step", "jit")
    first = compiled_in(caplog, lambda: step(state, X) if is_jitted else run(1, X))
    assert first == ["jit(step)" if is_jitted else "jit(once)"]
    assert compiled_in(caplog, lambda: run(7, X, steps_per_block=3)) == []
    assert compiled_in(caplog, lambda: run(150, X, steps_per_block=150)) == []
    assert compiled_in(caplog, lambda: run(7, batches=[X] * 3)) == []


@pytest.mark.slow
def test_a_step_that_gives_its_memory_away_does_not_take_what_fit_still_needs(start):
    """On Ctrl-C the last whole block is returned, and what a callback has kept stays; so does the first state."""
    step, kept = jax.jit(RWS.step, donate_argnums=0), []

    def batches():
        yield from [X] * 5
        raise KeyboardInterrupt

    found = rws_jax.fit(
        step,
        start,
        1000,
        batches=batches(),
        steps_per_block=2,
        callback=lambda state, _: kept.append(state),
        progress_bar=False,
    )
    assert_close(found, scan(start, 4))
    assert_close((kept[0], None), (scan(start, 2)[0], None))


def test_nothing_of_a_step_is_kept_when_it_is_gone(start):
    rws = rws_jax.make_step(models.binary_model, models.binary_guide)
    rws_jax.fit(rws.step, start, 2, X, progress_bar=False)
    step = weakref.ref(rws.step)
    del rws
    gc.collect()
    assert step() is None


@pytest.mark.slow
def test_what_has_been_compiled_is_kept_as_by_jit(start):
    """A global variable that has changed is seen by another step, and not by this one."""
    data = [X]
    step, later = lambda state: RWS.step(state, data[0]), lambda state: RWS.step(state, data[0])
    before, _ = rws_jax.fit(step, start, 2, progress_bar=False)
    data[0] = 1.0 - X
    again, _ = rws_jax.fit(step, start, 2, progress_bar=False)
    other, _ = rws_jax.fit(later, start, 2, progress_bar=False)
    chex.assert_trees_all_equal(again.phi, before.phi)
    assert not jnp.array_equal(other.phi["b"], before.phi["b"])


def test_keyword_arguments_reach_the_programs(start):
    chex.assert_trees_all_equal(fit(start, 3, x=X), fit(start, 3, X))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x]], ids=["single", "tuple", "list"])
def test_batches_are_taken_step_by_step_and_end_the_fit(start, wrap):
    batches = [X, X[:2], 1.0 - X, X, X]
    state, expected = start, []
    for x in batches:
        state, info = RWS.step(state, x)
        expected.append(info)
    found, infos = fit(start, 100, batches=(wrap(x) for x in batches), steps_per_block=2)
    chex.assert_trees_all_equal(found, state)
    chex.assert_trees_all_equal(infos, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))
    found, infos = fit(start, 3, batches=iter(batches))
    assert int(found.step) == 3


def test_batches_come_before_what_all_steps_share():
    def model(x, scale):
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))
        numpyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x, scale):
        numpyro.sample("z", dist.Normal(x / scale, 1.0))

    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), 1.0, 2.0)
    expected, _ = rws.step(state, 1.0, 2.0)
    found, _ = rws_jax.fit(rws.step, state, 1, 2.0, batches=[1.0], progress_bar=False)
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.slow
@pytest.mark.floors
def test_steps_that_cannot_be_jitted_are_taken_one_by_one():
    def model(x):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        loc = numpyro.param("m", 1.0)
        if z == 1:
            loc = loc + numpyro.sample("more", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        if numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("b", 0.0))) == 1:
            numpyro.sample("more", dist.Normal(0.0, 1.0))

    rws = rws_jax.make_step(model, guide, vectorize_particles=False)
    state = rws.init(jax.random.key(0), 1.5)
    found, infos = rws_jax.fit(rws.step, state, 2, 1.5, progress_bar=False)
    bound, _ = rws_jax.fit(partial(rws.step, x=1.5), state, 2, progress_bar=False)
    chex.assert_trees_all_equal(bound, found)
    for _ in range(2):
        state, info = rws.step(state, 1.5)
    chex.assert_trees_all_equal(found, state)
    assert infos.phi_loss[-1] == info.phi_loss


@pytest.mark.slow
class Unhashable:
    """A step that cannot be kept: it has neither hash nor weak references."""

    __slots__ = ()
    __hash__ = None

    def __call__(self, state, x):
        return RWS.step(state, x)


@pytest.mark.parametrize("batches", [None, [X] * 4], ids=["in blocks", "one by one"])
def test_a_step_that_cannot_be_cached_is_run_all_the_same(batches, start):
    args = (X,) if batches is None else ()
    found, _ = rws_jax.fit(Unhashable(), start, 4, *args, batches=batches, progress_bar=False)
    expected, _ = rws_jax.fit(RWS.step, start, 4, X, progress_bar=False)
    chex.assert_trees_all_close(found.theta, expected.theta)


@pytest.mark.parametrize("batches", [None, [X] * 4], ids=["in blocks", "one by one"])
def test_what_is_no_step_is_told(batches, start):
    args = (X,) if batches is None else ()
    with pytest.raises(TypeError, match="does not return an info") as error:
        rws_jax.fit(lambda state, x: (state, {"loss": x}), start, 4, *args, batches=batches, progress_bar=False)
    check(error, TypeError, "RWSInfo", "rws.step")
    with pytest.raises(TypeError, match="inside of jit, scan or vmap") as error:
        jax.jit(lambda state: rws_jax.fit(RWS.step, state, 4, X))(start)
    check(error, TypeError, "jax.lax.scan")


def test_seeds_may_be_mapped_over():
    states = jax.vmap(lambda key: RWS.init(key, X))(jax.random.split(jax.random.key(0), 3))
    found, infos = rws_jax.fit(jax.vmap(RWS.step, in_axes=(0, None)), states, 4, X, progress_bar=False)
    alone, _ = fit(jax.tree.map(lambda leaf: leaf[1], states), 4, X)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], found.theta), alone.theta, rtol=1e-5)
    assert infos.finite.shape == (4, 3)


# stopping


def test_a_callback_sees_each_block_and_may_stop(start):
    seen = []

    def callback(state, infos):
        seen.append((int(state.step), infos.phi_loss.shape))
        return len(seen) == 3

    state, infos = fit(start, 1000, X, steps_per_block=4, callback=callback)
    assert seen == [(4, (4,)), (8, (4,)), (12, (4,))]
    assert_close((state, infos), scan(start, 12))


def test_by_default_there_are_a_hundred_blocks_of_at_most_a_hundred_steps(start):
    for num_steps, size in [(50, 1), (1000, 10), (20_000, 100)]:
        sizes = []
        fit(start, num_steps, X, callback=lambda state, infos, sizes=sizes: sizes.append(len(infos.finite)))
        assert set(sizes) == {size}


def test_ctrl_c_returns_what_has_been_reached(start):
    def interrupted(state, infos):
        if state.step == 8:
            raise KeyboardInterrupt

    found = fit(start, 1000, X, steps_per_block=4, callback=interrupted)
    assert_close(found, scan(start, 8))

    def batches():
        yield from [X] * 5
        raise KeyboardInterrupt

    assert_close(fit(start, 1000, batches=batches(), steps_per_block=2), scan(start, 4))


def test_ctrl_c_before_the_first_block_returns_the_start(start):
    def batches():
        raise KeyboardInterrupt
        yield

    state, infos = fit(start, 1000, batches=batches())
    assert state is start
    assert infos.finite.shape == infos.phi_loss.shape == (0,)


def test_steps_that_are_never_finite_end_with_an_error_that_has_all(start):
    """Not one that recovers: three in a row, then a good one, then four."""
    bad = jnp.full_like(X, jnp.nan)
    batches = [X, *[bad] * 3, X, *[bad] * 4, X, X]
    with pytest.raises(rws_jax.NonFiniteError, match="4 steps in a row") as error:
        fit(start, 11, batches=batches, max_nonfinite_steps=3, steps_per_block=2)
    check(error, rws_jax.NonFiniteError, "phi_loss nan", "optax.clip_by_global_norm")
    assert isinstance(error.value, FloatingPointError)
    assert error.value.infos.finite.tolist() == [
        True,
        *[False] * 3,
        True,
        *[False] * 4,
        True,
    ]  # to the end of the block
    assert jnp.isfinite(error.value.state.phi["a"]).all()
    assert int(error.value.state.step) == 10
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)
    chex.assert_trees_all_equal((again.state, again.infos), (error.value.state, error.value.infos))
    state, _ = fit(start, 11, batches=batches, max_nonfinite_steps=4)
    assert int(state.step) == 11


@pytest.mark.slow
def test_one_seed_that_is_lost_does_not_stop_the_others():
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(lambda key: RWS.init(key, X))(keys)
    states = states._replace(theta={**states.theta, "p1": states.theta["p1"].at[0].set(jnp.nan)})
    step = jax.vmap(RWS.step, in_axes=(0, None))
    _, infos = rws_jax.fit(step, states, 5, X, max_nonfinite_steps=1, progress_bar=False)
    assert infos.finite.tolist() == [[False, True]] * 5


# the bar


@pytest.mark.floors
def test_the_bar_counts_steps_and_shows_means(start, capsys):
    _, infos = fit(start, 20, X, steps_per_block=10, progress_bar=True)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert f"phi loss={infos.phi_loss[10:].mean():.4g}" in shown
    fit(start, 20, X, progress_bar=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("long", [True, False])
def test_at_80_columns_the_bar_shows_ess_of_k_and_that_it_compiles(start, capsys, monkeypatch, long):
    """A program that has yet to be compiled says so while it is, and no longer."""
    monkeypatch.setattr(fit_module, "tqdm", partial(fit_module.tqdm, ncols=80))
    monkeypatch.setattr(blocks, "LOOP_FROM", 1 if long else 5000)
    step = partial(rws_jax.make_step(models.binary_model, models.binary_guide, num_particles=100).step, x=X)
    _, infos = rws_jax.fit(step, start, 10_000, max_nonfinite_steps=9, callback=lambda *_: True)
    shown = capsys.readouterr().err.replace("\n", "").split("\r")
    assert max(map(len, shown)) <= 80
    assert [line.startswith("compiling: ") for line in shown[1:4]] == [False, True, False]
    means = infos.ess_mean.mean(), infos.wake_theta_loss.mean(), infos.phi_loss.mean()
    assert "ESS={:.4g} of 100, theta loss={:.4g}, phi loss={:.4g}]".format(*means) in shown[-1]


@pytest.mark.parametrize("kind", ["vmap", "function", "pure sleep"])
def test_the_bar_shows_what_there_is(start, capsys, kind):
    states = jax.tree.map(lambda leaf: leaf[None], start)
    sleep = rws_jax.make_step(models.binary_model, models.binary_guide, insomnia=0.0)
    step, state, args = {
        "vmap": (jax.vmap(RWS.step, in_axes=(0, None)), states, (X,)),
        "function": (lambda state: RWS.step(state, X), start, ()),
        "pure sleep": (sleep.step, sleep.init(jax.random.key(0), X), (X,)),
    }[kind]
    _, infos = rws_jax.fit(step, state, 2, *args)
    shown = capsys.readouterr().err
    if kind == "pure sleep":
        assert f", theta loss={infos.wake_theta_loss[-1]:.4g}" in shown
    else:
        ess = float(infos.ess_mean[-1].mean())
        assert f"ESS={ess:.4g}{' of 2' if kind == 'vmap' else ''}, theta loss=" in shown


# errors


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"step": RWS}, TypeError, "pass rws.step"),
        ({"step": None}, TypeError, "the first argument of fit"),
        ({"state": {}}, TypeError, "is not a state"),
        ({"num_steps": 0}, ValueError, "'num_steps'"),
        ({"num_steps": 1e3}, TypeError, "'num_steps'"),
        ({"steps_per_block": 0}, ValueError, "'steps_per_block'"),
        ({"callback": 3}, TypeError, "'callback'"),
        ({"max_nonfinite_steps": -1}, ValueError, "'max_nonfinite_steps'"),
        ({"progress_bar": "no"}, TypeError, "'progress_bar'"),
        ({"batches": 5}, TypeError, "'batches'"),
        ({"batches": []}, ValueError, "'batches'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(start, options, kind, word):
    positional = {"step": RWS.step, "state": start, "num_steps": 10}
    args = [options.pop(name, value) for name, value in positional.items()]
    with pytest.raises(kind) as error:
        rws_jax.fit(*args, *([] if "batches" in options else [X]), **options)
    check(error, kind, word)
