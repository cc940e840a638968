"""Programs that users brought and that gave wrong numbers: what they are, exactly, or why they are refused."""

import warnings
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import expit
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.handlers import block, scope, seed

import rws_jax
from rws_jax.core.draws import may_round, moved_inside
from rws_jax.core.log_probs import exact
from rws_jax.programs.density import log_density
from tests import oracles
from tests.models import rows

pytestmark = pytest.mark.usefixtures("allow_rank_promotion")


def evidence(model, guide, *args, num_particles=2, **options):
    """The bound, which is the evidence for any number of particles if the guide is the posterior."""
    programs = oracles.seeded(model, guide)
    loss = partial(rws_jax.wake_theta_loss, {}, {}, *programs, num_particles=num_particles, **options)
    return -jax.jit(loss)(*args)


class ThreeNormals(dist.Distribution):
    """Written by a user: a vector of three, with the support of one element."""

    support = constraints.real
    pytree_data_fields = ("loc",)

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc), (3,))

    def sample(self, key, sample_shape=()):
        shape = (*sample_shape, *self.batch_shape, 3)
        return jnp.asarray(self.loc)[..., None] + jax.random.normal(key, shape)

    def log_prob(self, value):
        return dist.Normal(jnp.asarray(self.loc)[..., None], 1.0).log_prob(value).sum(axis=-1)


@pytest.mark.parametrize("num_data", rows([1, 2, 3], fast=[3]))
def test_a_support_of_elements_is_one_of_events(num_data):
    x = jax.random.normal(jax.random.key(0), (num_data, 3))

    def model(x):
        with numpyro.plate("data", num_data):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", ThreeNormals(z), obs=x)

    def guide(x):
        with numpyro.plate("data", num_data):
            numpyro.sample("z", dist.Normal(x.sum(axis=-1) / 4.0, 0.5))

    expected = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 1.0).log_prob(x).sum()
    assert jnp.allclose(evidence(model, guide, x), expected, rtol=1e-5)


INTERVALS = jnp.array([[0.5, 1.0], [2.0, jnp.inf], [jnp.nan, 0.7]])


@pytest.mark.skipif(not hasattr(dist, "IntervalCensoredDistribution"), reason="NumPyro has none yet")
@pytest.mark.parametrize("num_data", rows([1, 2, 3], fast=[3]))
@pytest.mark.parametrize("latent", [dist.Exponential(1.0), dist.Normal(0.5, 2.0)], ids=["positive", "real"])
def test_an_interval_is_tested_as_its_own_distribution_tests_it(latent, num_data):
    left, right = jnp.array([0, 0, 1])[:num_data], jnp.array([0, 1, 0])[:num_data]
    fn = dist.IntervalCensoredDistribution(latent, left, right)
    cdf = latent.cdf(jnp.nan_to_num(INTERVALS[:num_data], nan=-jnp.inf, posinf=jnp.inf))
    exact = jnp.log(jnp.where(right, 1.0, cdf[:, 1]) - jnp.where(left, 0.0, cdf[:, 0]))
    assert jnp.allclose(log_density(fn, INTERVALS[:num_data], None), exact, rtol=1e-4)
    wrong = INTERVALS[:num_data].at[0].set(jnp.array([1.0, 0.5]))
    assert log_density(fn, wrong, None)[0] == -jnp.inf


def test_events_outside_of_a_support_of_elements_are_dead_as_a_whole():
    value = jnp.array([[1.0, jnp.nan, 0.0], [1.0, 2.0, 3.0]])
    log_prob = log_density(ThreeNormals(jnp.zeros(2)), value, None)
    assert log_prob.shape == (2,)
    assert log_prob[0] == -jnp.inf
    assert jnp.isfinite(log_prob[1])
    assert log_density(ThreeNormals(jnp.zeros(2)).to_event(1), value, None) == -jnp.inf
    masked = ThreeNormals(jnp.zeros(2)).mask(jnp.array([False, True]))
    assert jnp.allclose(log_density(masked, value, None), jnp.where(jnp.array([True, False]), 0.0, log_prob[1]))


# distribution -> draws of it that floats round to a border, or take beyond it
ROUNDED = {
    "gamma": (dist.Gamma(0.02, 1.0), [0.0, 1e-40]),
    "gamma of rate": (dist.Gamma(0.001, 0.001), [0.0]),
    "lognormal": (dist.LogNormal(-80.0, 10.0), [0.0]),
    "weibull": (dist.Weibull(1.0, 0.02), [0.0, jnp.inf]),
    "chi2": (dist.Chi2(0.05), [0.0]),
    "inverse gamma": (dist.InverseGamma(0.02, 1.0), [jnp.inf, 8e37]),
    "beta": (dist.Beta(0.02, 0.02), [0.0, 1.0]),
    "real": (dist.Laplace(0.0, 1e30), [-jnp.inf, jnp.inf]),
    "pareto": (dist.Pareto(2.0, 0.01), [2.0, jnp.inf]),
    "exponential, masked": (dist.Exponential(1e30).mask(True).expand((2,)), [[0.0, 1.0]]),
    "dirichlet": (dist.Dirichlet(jnp.full(3, 0.01)), [[1.0, 0.0, 0.0]]),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_draws_on_a_border_are_moved_inside_where_densities_are_finite(name):
    fn, draws = ROUNDED[name]
    assert may_round(fn)
    for draw in jnp.asarray(draws, float):
        moved = moved_inside(fn, draw)
        assert jnp.all(fn.support(moved))
        assert jnp.all(jnp.isfinite(log_density(fn, moved, fn)))
        assert jnp.allclose(moved, draw, atol=1e-30) or jnp.any(jnp.isinf(draw))  # to the nearest number


@pytest.mark.parametrize(
    "fn", [dist.Normal(0.0, 2.0), dist.Gamma(3.0, 2.0), dist.Dirichlet(jnp.ones(4))], ids=lambda fn: type(fn).__name__
)
def test_draws_inside_stay_what_they_are(fn):
    draws = fn.sample(jax.random.key(0), (100,))
    assert jnp.array_equal(moved_inside(fn, draws), draws)


ATOM = dist.MixtureGeneral(
    dist.Categorical(jnp.array([0.4, 0.6])), [dist.Delta(0.0), dist.HalfNormal(1.0)], support=constraints.nonnegative
)


def test_points_integers_and_values_on_a_border_that_may_be_meant_are_not_moved():
    """Supports that are closed have their borders in them, and a distribution may have an atom there."""
    points = dist.Delta(0.0), dist.Poisson(3.0), dist.Bernoulli(0.5), dist.Categorical(jnp.ones(3) / 3)
    for fn in (*points, ATOM, dist.Uniform(0.0, 1.0), dist.TruncatedNormal(low=0.0)):
        assert not may_round(fn)


def test_an_atom_on_the_border_is_drawn():
    programs = oracles.programs_of(lambda: None, lambda: numpyro.sample("z", ATOM), {}, {})
    at_zero = oracles.draw(programs, 400).latents["z"] == 0.0
    assert jnp.abs(at_zero.mean() - 0.4) < 4 * jnp.sqrt(0.24 / 400)


@pytest.mark.parametrize("name", rows(["gamma", "lognormal", "weibull", "inverse gamma", "beta"], fast=["gamma"]))
def test_a_guide_that_is_the_prior_gives_every_particle_weight_one(name):
    """So the bound is the evidence, if the data do not depend on the latent."""
    fn, _ = ROUNDED[name]

    def model(x):
        with numpyro.plate("data", 50):
            numpyro.sample("z", fn)
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 50):
            numpyro.sample("z", fn)

    x = jnp.zeros(50)
    exact = dist.Normal(0.0, 1.0).log_prob(x).sum()
    for options in ({}, {"defensive": 0.3}):
        assert jnp.allclose(evidence(model, guide, x, **options), exact, rtol=1e-4)


@pytest.mark.slow
def test_dreams_on_a_border_have_finite_densities(allow_key_reuse):
    """Latents and data, in scan as well."""

    def model(x):
        def body(carry, x_t):
            z = numpyro.sample("z", dist.Gamma(0.02, 1.0))
            numpyro.sample("x", dist.Gamma(0.02, 1.0 + z), obs=x_t)
            return carry, None

        scan(body, None, x)

    def guide(x):
        def body(carry, x_t):
            numpyro.sample("z", dist.Gamma(0.02, 1.0 - 0.01 * jnp.log(x_t)))
            return carry, None

        scan(body, None, x)

    loss = partial(rws_jax.sleep_phi_loss, {}, {}, *oracles.seeded(model, guide), num_particles=10)
    assert jnp.isfinite(jax.jit(loss)(jnp.ones(20)))


@pytest.mark.parametrize("total", rows([None, 3], fast=[None]))
@pytest.mark.parametrize("logit", rows([0.0, -0.0, 0.7, -40.0], fast=[0.0]))
def test_gradients_of_logits_are_exact_where_guides_start(logit, total):
    """Through masks, expansions and mixtures, too."""
    wrap = {
        "plain": lambda fn: fn,
        "masked": lambda fn: fn.mask(jnp.array(True)),
        "event": lambda fn: fn.expand((1,)).to_event(1),
        "inflated": lambda fn: dist.ZeroInflatedDistribution(fn, gate=0.0),
        "mixture": lambda fn: dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [fn, fn]),
    }
    of = lambda logits: dist.Bernoulli(logits=logits) if total is None else dist.Binomial(total, logits=logits)
    for value in range(total or 2):
        exact = value - (total or 1) * expit(logit)
        for name, around in wrap.items():
            value_of = jnp.array([value]) if name == "event" else jnp.array(value)
            score = lambda logits, around=around, value_of=value_of: log_density(around(of(logits)), value_of, None)
            gradient = jax.grad(lambda logits, score=score: jnp.sum(score(logits)))(logit)
            assert jnp.allclose(gradient, exact, atol=1e-6), name
            assert jnp.allclose(score(logit), around(of(logit)).log_prob(value_of), atol=1e-6), name


def test_certain_logits_and_grey_values_keep_their_densities():
    for logit in (jnp.inf, -jnp.inf):
        for value in (0, 1):
            fn = exact(dist.Bernoulli(logits=jnp.array(logit), validate_args=False))
            assert fn.log_prob(value) == (0.0 if (logit > 0) == bool(value) else -jnp.inf)
    fn = exact(dist.Bernoulli(logits=jnp.array(jnp.nan), validate_args=False))
    assert jnp.isnan(fn.log_prob(1))
    assert jnp.allclose(exact(dist.Bernoulli(logits=0.5)).log_prob(0.3), 0.3 * 0.5 - jax.nn.softplus(0.5))


def test_a_support_that_depends_on_latents_is_scored():
    """x ~ Uniform(0, z), z ~ Pareto(1, 2): log p(1.7) = log(2/3) - 3 log 1.7; the posterior is Pareto(1.7, 3)."""

    def model(x):
        z = numpyro.sample("z", dist.Pareto(1.0, 2.0))
        numpyro.sample("x", dist.Uniform(0.0, z), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Pareto(x, 3.0))

    exact = jnp.log(2 / 3) - 3 * jnp.log(1.7)
    assert jnp.allclose(evidence(model, guide, 1.7), exact, rtol=1e-4)
    assert jnp.allclose(evidence(partial(model, 1.7), partial(guide, 1.7)), exact, rtol=1e-4)  # data that are known


def test_log_densities_in_half_precision_are_summed_in_single_precision():
    """Categories are exact in half precision but for rounding of each log density; sums would lose the rest."""
    logits = jax.random.normal(jax.random.key(0), (400, 4)).astype(jnp.bfloat16)

    def guide():
        numpyro.sample("z", dist.Categorical(logits=logits).to_event(0))

    programs = oracles.programs_of(guide, guide, {}, {})
    draws = oracles.draw(programs, 20).latents
    scored = oracles.score(programs, draws)
    exact = jax.nn.log_softmax(logits.astype(jnp.float32))
    exact = jnp.take_along_axis(exact[None], draws["z"][..., None], axis=-1).sum(axis=(1, 2))
    assert scored.log_q.dtype == jnp.float32
    assert jnp.max(jnp.abs(scored.log_q - exact)) < 0.3  # of 500 nats; summed in bfloat16 errors are of two nats


def plated(*, size=1000, num=4, handler=lambda program: program, made_outside=False):
    """Programs of a minibatch; the guide is the posterior, so each loss is the scaled evidence of the minibatch."""

    def in_plate(body):
        def program(x):
            if not made_outside:
                with numpyro.plate("data", size, subsample_size=num):
                    return body(x)
            plate = numpyro.plate("data", size, subsample_size=num)
            with scope(prefix="m"), plate:
                return body(x)

        return handler(program)

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(x / 2.0, jnp.sqrt(0.5)))

    return in_plate(model), in_plate(guide)


X = jnp.array([0.3, -1.0, 2.0, 0.5])
EXACT = 250.0 * dist.Normal(0.0, jnp.sqrt(2.0)).log_prob(X).sum()


@pytest.mark.parametrize(
    "options",
    [
        {"made_outside": True},
        {"handler": lambda program: scope(program, prefix="m")},
        {"handler": lambda program: block(program, expose_types=["sample", "param", "plate"])},
        {"handler": lambda program: block(program, hide_fn=lambda site: site["name"] == "unused")},
    ],
    ids=["plate outside of scope", "scope", "block, plates exposed", "block of nothing"],
)
def test_the_scale_of_a_minibatch_does_not_depend_on_the_name_of_its_plate(options, allow_key_reuse):
    assert jnp.allclose(evidence(*plated(**options), X), EXACT, rtol=1e-5)


@pytest.mark.parametrize("kind", [{"hide": ["data"]}, {"expose": ["z", "x"]}, {"expose_types": ["sample", "param"]}])
def test_a_minibatch_whose_record_is_hidden_is_refused(kind, allow_key_reuse):
    """Each particle would draw its own."""
    with pytest.raises(ValueError, match=r"(?s)plate 'data' of the guide .* record is hidden.*4 of 1000.*hide_fn"):
        evidence(*plated(handler=lambda program: block(program, **kind)), X)


def test_a_full_plate_may_be_hidden(allow_key_reuse):
    programs = plated(size=4, handler=lambda program: block(program, hide=["data"]))
    assert jnp.allclose(evidence(*programs, X), EXACT / 250.0, rtol=1e-5)


def with_value(fn, value, *, plate=None, in_scan=False):
    """A model that observes a value."""

    def observe(carry=None, value=value):
        numpyro.sample("x", fn, obs=value)
        return carry, None

    def model():
        numpyro.sample("z", dist.Bernoulli(0.5))
        if in_scan:
            scan(observe, None, value[None])
        elif plate is not None:
            with plate():
                observe()
        else:
            observe()

    return model


N = dist.Normal(0.0, 1.0)
FIVE = lambda: numpyro.plate("data", 5)
MISFITS = {
    "column under a plate": (with_value(N.expand((5,)), jnp.zeros((5, 1)), plate=FIVE), r"\(5, 1\).*\(5,\)"),
    "matrix under a plate": (with_value(N.expand((5,)), jnp.zeros((5, 5)), plate=FIVE), r"wider than its plates.*\(5,"),
    "column without a plate": (with_value(N.expand((5,)), jnp.zeros((5, 1))), r"broadcast.*\(5, 1\)"),
    "row against a column": (with_value(N.expand((5, 1)), jnp.zeros(5)), r"broadcast"),
    "one word for three": (with_value(N.expand((1,)).to_event(1), jnp.zeros(3)), r"event shape \(1,\)"),
    "three words for one": (with_value(N.expand((3,)).to_event(1), jnp.zeros(1)), r"event shape \(3,\)"),
    "scalar for a vector": (with_value(N.expand((3,)).to_event(1), jnp.zeros(())), r"event shape \(3,\)"),
    "other size": (with_value(N.expand((3,)), jnp.zeros(4)), r"does not have the batch shape"),
    "one for three": (with_value(N.expand((3,)), jnp.zeros(1)), r"broadcast"),
    "column in scan": (with_value(N.expand((5,)), jnp.zeros((5, 1)), in_scan=True), r"broadcast.*\(5, 1\)"),
}


def coin():
    numpyro.sample("z", dist.Bernoulli(0.5))


@pytest.mark.parametrize("name", rows(MISFITS, fast=["column under a plate", "one word for three", "column in scan"]))
def test_a_value_that_would_be_broadcast_is_refused(name, allow_key_reuse):
    model, words = MISFITS[name]
    with pytest.raises(ValueError, match=rf"(?s)value of site 'x' of the model.*{words}.*to_event"):
        rws_jax.wake_theta_loss({}, {}, seed(model, 0), seed(coin, 1))


FITS = {
    "a batch of one distribution": (with_value(N, jnp.ones(5)), 5),
    "a scalar for a plate": (with_value(N.expand((5,)), jnp.ones(()), plate=FIVE), 5),
    "a batch of its own": (with_value(N.expand((2, 5)), jnp.ones((2, 5))), 10),
    "sizes of one": (with_value(N.expand((1,)), jnp.ones((5, 1))), 5),
    "a Python number": (with_value(N, 1.0), 1),
    "in scan": (with_value(N.expand((5,)), jnp.ones(5), in_scan=True), 5),
}


@pytest.mark.parametrize("name", rows(FITS, fast=["a batch of one distribution", "a scalar for a plate"]))
def test_values_that_fit_are_scored_once(name, allow_key_reuse):
    model, num = FITS[name]
    assert jnp.allclose(evidence(model, coin), num * N.log_prob(1.0), rtol=1e-5)


def test_a_latent_that_is_wider_than_its_plates_is_refused():
    def model():
        with numpyro.plate("data", 5):
            numpyro.sample("z", N.expand((3, 5)))

    with pytest.raises(ValueError, match=r"(?s)'z'.*\(3, 5\), wider than its plates.*\(5,\).*to_event"):
        rws_jax.wake_theta_loss({}, {}, seed(model, 0), seed(model, 1))


def closing_over(loss, **options):
    """Gradients with respect to what model and guide close over, and with respect to the same as params."""

    def model_of(m):
        def model(x=None):
            z = numpyro.sample("z", dist.Normal(m(), 1.0))
            y = numpyro.sample("y", dist.Normal(z, 1.0))
            numpyro.sample("x", dist.Normal(y, 1.0), obs=x)

        return model

    def guide_of(a):
        def guide(x=None):
            z = numpyro.sample("z", dist.Normal(a() * x, 1.0))
            numpyro.sample("y", dist.Normal(a() * z, 1.0))

        return guide

    def closed(m, a):
        return loss({}, {}, *oracles.seeded(model_of(lambda: m), guide_of(lambda: a)), 1.0, **options)

    def as_params(m, a):
        model, guide = model_of(partial(numpyro.param, "m")), guide_of(partial(numpyro.param, "a"))
        return loss({"m": m}, {"a": a}, *oracles.seeded(model, guide), 1.0, **options)

    return [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(0.3, 0.4) for f in (closed, as_params)]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        pytest.param(rws_jax.wake_theta_loss, {"defensive": 0.3}, marks=pytest.mark.slow),
        (rws_jax.wake_phi_loss, {}),
        pytest.param(rws_jax.wake_phi_loss, {"gradient": "dreg"}, marks=pytest.mark.slow),
        pytest.param(rws_jax.sleep_phi_loss, {}, marks=pytest.mark.slow),
    ],
    ids=["wake-theta", "wake-phi", "dreg", "sleep-phi"],
)
def test_a_gradient_is_the_same_of_params_and_of_what_programs_close_over(loss, options):
    closed, as_params = closing_over(loss, num_particles=4, **options)
    assert jnp.allclose(jnp.array(jax.tree.leaves(closed)), jnp.array(jax.tree.leaves(as_params)), atol=1e-5)


@pytest.mark.parametrize(("impl", "warns"), [("threefry2x32", False), ("rbg", True)])
def test_keys_that_are_mapped_over_as_one_break_a_promise_and_say_so(impl, warns):
    programs = (seed(coin, jax.random.key(number, impl=impl)) for number in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rws_jax.wake_theta_loss({}, {}, *programs, num_particles=4, chunk_size=2)
    assert warns == any("'chunk_size'" in str(w.message) and "'rbg'" in str(w.message) for w in caught)


def test_paths_need_keys_that_draw_the_same_in_every_group():
    def program():
        numpyro.sample("z", dist.Bernoulli(0.5), infer={"branching": True})

    programs = (seed(program, jax.random.key(number, impl="rbg")) for number in range(2))
    with pytest.raises(ValueError, match=r"(?s)branching sites.*'rbg'.*threefry"):
        rws_jax.wake_theta_loss({}, {}, *programs, num_particles=4)


def batch_program(x, observe=True, *, plate=False, event_dim=0):
    """A batch of latents and data, in a plate or in none."""
    with numpyro.plate("data", len(x)) if plate else nullcontext():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand(jnp.shape(x)).to_event(event_dim))
        if observe:
            numpyro.sample("x", dist.Normal(z, 1.0).to_event(event_dim), obs=x)


X_MATRIX = jnp.ones((5, 3))
BATCHES = {
    "rows": (X_MATRIX, {}, "5"),
    "numbers": (X_MATRIX[:, 0], {}, "5"),
    "vectors": (X_MATRIX, {"event_dim": 1}, "5"),
    "a plate": (X_MATRIX, {"event_dim": 1, "plate": True}, None),
    "one datum": (X_MATRIX, {"event_dim": 2}, None),
    "a batch of one": (X_MATRIX[:1], {"event_dim": 1}, None),
}


@pytest.mark.parametrize("name", rows(BATCHES, fast=["vectors", "a plate"]))
def test_a_batch_outside_of_any_plate_is_one_unit_and_a_warning_says_so(name):
    x, options, num = BATCHES[name]
    guide = lambda x: batch_program(x, False, **options)
    rws = rws_jax.make_step(partial(batch_program, **options), guide)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rws.init(jax.random.key(0), x)
    texts = [str(warning.message) for warning in caught]
    if num is None:
        assert texts == []
    else:
        (text,) = texts
        assert f"a batch of {num} outside of any plate" in text
        assert f"numpyro.plate('data', {num})" in text
        assert "data_axes=0" in text


def test_data_that_share_a_latent_are_one_unit_without_a_warning():
    """Nothing can be done about it by a plate."""

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(x.mean(), 0.5))

    rws_jax.make_step(model, guide).init(jax.random.key(0), jnp.ones(5))
