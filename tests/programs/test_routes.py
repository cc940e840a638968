"""Dreams find their way: to the argument, or the array within one, that the model observes, by identity or by name."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import scope, seed
from numpyro.infer.autoguide import AutoNormal

import rws_jax
from tests.checks.test_errors import check
from tests.programs.test_stand_in import mean_gradient

X, COVARIATE = jnp.array([5.0, 5.0, -5.0]), jnp.array([0.5, 0.0, 1.0])


class Batch(NamedTuple):
    data: Any
    covariate: Any


@jax.tree_util.register_dataclass
@dataclass
class Record:
    data: Any
    covariate: Any


def model_of(get):
    def model(*args, **kwargs):
        x, covariate = get(*args, **kwargs)
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(covariate + z, 1.0), obs=x)

    return model


def guide_of(get):
    def guide(*args, **kwargs):
        x, covariate = get(*args, **kwargs)
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("a", 0.2) * (x - covariate), 1.0))

    return guide


# How programs read their data and a covariate, positional arguments, keyword arguments.
ROUTES = {
    "an argument": (lambda batch, c: (batch, c), (X, COVARIATE), {}),
    "an array of NumPy": (lambda batch, c: (batch, c), (np.asarray(X), COVARIATE), {}),
    "a keyword": (lambda *, batch, c: (batch, c), (), {"batch": X, "c": COVARIATE}),
    "a dict": (lambda batch: (batch["image"], batch["c"]), ({"image": X, "c": COVARIATE},), {}),
    "a dict named as the site": (lambda x: (x["image"], x["c"]), ({"image": X, "c": COVARIATE},), {}),
    "a NamedTuple": (lambda batch: (batch.data, batch.covariate), (Batch(X, COVARIATE),), {}),
    "a dataclass": (lambda batch: (batch.data, batch.covariate), (Record(X, COVARIATE),), {}),
    "a list in a dict": (lambda batch: batch["both"], ({"both": [X, COVARIATE]},), {}),
    "observations": (lambda c, observations=None: (observations["x"], c), (COVARIATE,), {"observations": {"x": X}}),
    "observations of another name": (
        lambda observations=None: (observations["image"], observations["c"]),
        (),
        {"observations": {"image": X, "c": COVARIATE}},
    ),
    "observations that are the array": (lambda observations, c: (observations, c), (X, COVARIATE), {}),
}
FAST = "an array of NumPy", "a dataclass", "observations of another name"


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in ROUTES])
def test_dreams_go_where_the_data_are(name):
    """The gradient on dreams z + e is E[(a (z + e) - z) (z + e)] = 2 a - 1 for each of three data."""
    get, args, kwargs = ROUTES[name]
    mean, error = mean_gradient(model_of(get), guide_of(get), {"a": 0.2}, *args, num_particles=30, **kwargs)
    assert jnp.abs(mean[0] + 1.8) < 5 * error[0] < 0.5


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("way", [pytest.param("init", marks=pytest.mark.slow), "step"])
def test_the_ways_are_open_to_steps(name, way):
    get, args, kwargs = ROUTES[name]
    rws = rws_jax.make_step(model_of(get), guide_of(get), insomnia=0.5)
    init = partial(rws.init, jax.random.key(0))
    state = jax.eval_shape(init, *args, **kwargs) if way == "step" else init(*args, **kwargs)
    if way == "step":
        assert jax.eval_shape(rws.step, state, *args, **kwargs)[1].sleep_phi_loss.shape == ()


def of_one_model(observations=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=observations["x"])


def of_one_guide(observations=None):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.2) * observations["x"], 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        pytest.param(loss, options, marks=() if options == fast else pytest.mark.slow)
        for loss, fast in (
            (rws_jax.wake_theta_loss, {"vectorize_particles": False}),
            (rws_jax.wake_phi_loss, {}),
            (rws_jax.sleep_phi_loss, {}),
        )
        for options in ({}, {"chunk_size": 2}, {"vectorize_particles": False})
    ],
)
def test_observations_by_keyword_are_rows_of_data(loss, options):
    """As when they are passed by position: `jax.vmap` maps keyword arguments over axis 0."""
    by_position = lambda program: lambda x: program({"x": x})
    call = lambda model, guide, *args, **kwargs: loss(
        {}, {"a": 0.2}, seed(model, 0), seed(guide, 1), *args, num_particles=3, data_axes=0, **options, **kwargs
    )
    by_keyword = call(of_one_model, of_one_guide, observations={"x": X})
    assert jnp.allclose(by_keyword, call(by_position(of_one_model), by_position(of_one_guide), X))


@pytest.mark.slow
def test_other_keywords_are_the_same_for_all_data():
    model = lambda x, scale, observations: of_one_model(observations)
    guide = lambda x, scale, observations: numpyro.sample("z", dist.Normal(observations["x"] + x, jnp.sum(scale)))
    call = lambda **kwargs: rws_jax.wake_phi_loss(
        {}, {}, seed(model, 0), seed(guide, 1), X, observations={"x": X}, data_axes=(0,), **kwargs
    )
    assert jnp.allclose(call(scale=2.0), call(scale=jnp.ones(2)))
    with pytest.raises(ValueError, match="no number of data") as error:
        rws_jax.wake_phi_loss(
            {}, {}, seed(model, 0), seed(guide, 1), X, 1.0, observations={"x": X[:2]}, data_axes=(0, None)
        )
    check(error, ValueError, "3 in argument 0", "2 in argument 'observations'")


@pytest.mark.parametrize("by", ["argument", "observations"])
def test_scope_leaves_a_site_its_name(by):
    """What the model observes is computed, so that names alone tell."""
    twice = {"argument": lambda x: (2.0 * x, 0.0), "observations": lambda observations: (2.0 * observations["x"], 0.0)}
    model, guide = model_of(twice[by]), guide_of(twice[by])
    named = {
        "argument": (lambda x: model(x), lambda x: guide(x)),
        "observations": (lambda observations: model(observations), lambda observations: guide(observations)),
    }
    programs = [scope(program, "m") for program in named[by]]
    arg = X if by == "argument" else {"x": X}
    mean, error = mean_gradient(*programs, {"m/a": 0.2}, arg, num_particles=30)
    # The guide reads twice what the model has dreamt: E[(2 a x - z) 2 x] = 8 a - 2 for each datum.
    assert jnp.abs(mean[0] + 1.2) < 5 * error[0] < 0.8


def both_observed(x, y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("a/x", dist.Normal(z, 1.0), obs=x)
    numpyro.sample("b/x", dist.Normal(z, 1.0), obs=y)


def test_two_scopes_do_not_share_a_name():
    """By name nothing could go to the one argument; by identity each goes to its own."""
    guide = lambda x, y: numpyro.sample("z", dist.Normal(numpyro.param("a", 0.2) * (x - y), 1.0))
    mean, error = mean_gradient(both_observed, guide, {"a": 0.2}, 5.0, -5.0, num_particles=30)
    assert jnp.abs(mean[0] - 0.4) < 5 * error[0] < 0.3  # E[(a (x - y) - z) (x - y)] = 2 a


def test_an_array_that_is_data_and_covariate_is_refused_without_a_name():
    model, guide = (program(lambda c, batch: (batch, c)) for program in (model_of, guide_of))
    named = rws_jax.make_step(lambda c, x: model(c, x), lambda c, x: guide(c, x), insomnia=0.5)
    other = rws_jax.make_step(lambda c, y: model(c, y), lambda c, y: guide(c, y), insomnia=0.5)
    named.init(jax.random.key(0), X, X)
    other.init(jax.random.key(0), X, jnp.array(X))
    with pytest.raises(ValueError, match="observes an array that is passed more than once") as error:
        other.init(jax.random.key(0), X, X)
    check(error, ValueError, "observed site 'x'", "arguments ['c', 'y']", "jnp.array(x)", "simulated_data_to_args")


def test_two_sites_cannot_dream_one_array():
    def model(data):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=data)
        numpyro.sample("y", dist.Normal(-z, 1.0), obs=data)

    guide = lambda data: numpyro.sample("z", dist.Normal(data, 1.0))
    with pytest.raises(ValueError, match="sites 'x' and 'y' observe one array") as error:
        rws_jax.make_step(model, guide, insomnia=0.5).init(jax.random.key(0), jnp.array(1.0))
    check(error, ValueError, "argument 'data'", "simulated_data_to_args")


@pytest.mark.parametrize("by", ["name", "identity"])
def test_dreams_of_another_length_than_the_data_are_told_of_padding(by):
    def model(n, x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        n = int(numpyro.sample("n", dist.DiscreteUniform(4, 5), obs=n))
        numpyro.sample("x", dist.Normal(z, 1.0).expand([n]).to_event(1), obs=x)

    named, other = lambda n, x: None, lambda count, batch: None
    guide = named if by == "name" else other
    with pytest.raises(ValueError, match="differ in shape at observed site 'x'") as error:
        rws_jax.make_step(model, guide, insomnia=0.5, vectorize_particles=False).init(jax.random.key(0), 3, X)
    check(error, ValueError, "(3,)", "padded, and masked in the model (docs/control_flow.md)")


# Guides that read no data


def model(x, c=None):
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_with(loc):
    def guide(x, c=None):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(loc(x, c), 1.0))

    return guide


READERS = {
    "a slope of zero": (guide_with(lambda x, c: numpyro.param("a", 0.0) * x), {}),
    "a look-up": (guide_with(lambda x, c: numpyro.param("a", jnp.zeros(2))[(x > 0).astype(int)]), {}),
    "a choice": (guide_with(lambda x, c: jnp.where(x > 0, numpyro.param("a", 0.0), numpyro.param("b", 0.0))), {}),
    "another argument": (
        guide_with(lambda x, c: numpyro.param("a", 0.0) * c),
        {"simulated_data_to_args": lambda sim, x, c: ((x, sim["x"]), {})},
    ),
}
BLIND = {
    "AutoNormal": (AutoNormal(model), {}),
    "a location": (guide_with(lambda x, c: numpyro.param("a", jnp.zeros(3))), {}),
    "a length": (guide_with(lambda x, c: numpyro.param("a", 0.0) + jnp.zeros_like(x) + len(x)), {}),
    "a covariate": (guide_with(lambda x, c: numpyro.param("a", 0.0) * c), {}),
    "what it is not shown": (
        guide_with(lambda x, c: numpyro.param("a", 0.0) * c),
        {"simulated_data_to_args": lambda sim, x, c: ((sim["x"], c), {})},
    ),
}


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("name", [*READERS, *BLIND])
def test_a_guide_that_reads_no_data_is_warned_of(name):
    """By what it computes, not by values: the commonest start is a slope of zero."""
    guide, options = (READERS | BLIND)[name]
    for insomnia in (0.0, 1.0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rws_jax.make_step(model, guide, insomnia=insomnia, **options).init(jax.random.key(0), X, COVARIATE)
        messages = [str(warning.message) for warning in caught if "reads no data" in str(warning.message)]
        assert len(messages) == (name in BLIND and insomnia == 0.0)
        for message in messages:
            assert all(word in message for word in ("prior", "not to the posterior", "insomnia=1.0"))
