"""Arguments that are no arrays: static where they have a hash, read by numpy where they hold numbers, refused else."""

import argparse
import copy
import dataclasses
import enum
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import seed
from numpyro.infer import SVI

import rws_jax
from rws_jax.core.static import Static
from rws_jax.programs.program import Arguments
from tests.checks.test_errors import check

X = jnp.array([0.5, -1.0, 2.0])
pytestmark = pytest.mark.usefixtures("allow_key_reuse")  # steps from one state


class Family(enum.Enum):
    NARROW, WIDE = "narrow", "wide"


class Level(enum.IntEnum):
    LOW, HIGH = 1, 2


@dataclasses.dataclass
class Config:
    """Without a hash of its own, as what has __eq__ and may change."""

    wide: object


VALUES = {
    "text": ("narrow", "wide"),
    "bool": (False, True),
    "none": (0.5, None),  # not a static value, but no leaf
    "enum": (Family.NARROW, Family.WIDE),
    "int enum": (Level.LOW, Level.HIGH),
    "function": (math.sin, math.cos),
    "type": (np.float32, np.float64),
    "namespace": (argparse.Namespace(wide=[1, 2]), argparse.Namespace(wide=[1, 3])),
    "dataclass": (Config(False), Config(True)),
}
WIDE = ["wide", True, None, Family.WIDE, Level.HIGH, math.cos, np.float64, VALUES["namespace"][1], Config(True)]


def programs():
    """Python branches on the argument `mode`, and looks it up; `traces` counts."""
    traces = []

    def model(x, mode, rate=0.0):
        traces.append(mode)
        is_wide = any(type(mode) is type(wide) and mode == wide for wide in WIDE)
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(rate, 1.0))
            numpyro.sample("x", dist.Normal(z, 3.0 if is_wide else 1.0), obs=x)

    def guide(x, mode, rate=0.0):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0) * x, 1.0))

    return model, guide, traces


@pytest.mark.parametrize("kind", VALUES)
def test_equal_values_are_one_entry_of_a_cache_of_jit(kind):
    seen = []

    @jax.jit
    def function(arguments):
        seen.append(arguments.plain.args[1])
        return arguments.args[0]

    for value in VALUES[kind]:
        function(Arguments.of((X, value), {}))
        function(Arguments.of((X, copy.deepcopy(value)), {}))
    assert len(seen) == 2
    if VALUES[kind][0] != 0.5:  # a number, which is traced
        assert seen == [*VALUES[kind]]


def test_static_arguments_are_those_of_programs_with_the_value_bound():
    """A value compiles once."""
    model, guide, traces = programs()
    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), X, "narrow")
    for value in ("narrow", "wide"):
        before = len(traces)
        info = rws.step(state, X, value)[1]
        assert len(traces) > before
        before = len(traces)
        assert rws.step(state, X, value)[1].wake_theta_loss == info.wake_theta_loss
        assert len(traces) == before
    bound = rws_jax.make_step(partial(model, mode="wide"), partial(guide, mode="wide"))
    assert jnp.allclose(bound.step(state, X)[1].wake_theta_loss, info.wake_theta_loss)


def test_equal_values_are_the_same_and_numbers_are_traced():
    model, guide, traces = programs()
    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), X, "wide", rate=0.1)
    rws.step(state, X, "wide", rate=0.1)
    num_traces = len(traces)
    first, *others = (rws.step(state, X, "".join(["wi", "de"]), rate=rate)[1] for rate in (0.1, 0.2, 3.0))
    assert len(traces) == num_traces
    assert all(other.wake_theta_loss != first.wake_theta_loss for other in others)
    assert Static(True) != Static(1)  # a flag is not a number
    assert hash(Static(Config(1))) == hash(Static(Config(1)))


@pytest.mark.floors
def test_a_namespace_that_has_changed_is_another_value():
    model, guide, _ = programs()
    rws, config = rws_jax.make_step(model, guide), Config(False)
    state = rws.init(jax.random.key(0), X, config)
    narrow = rws.step(state, X, config)[1].wake_theta_loss
    config.wide = True
    assert rws.step(state, X, config)[1].wake_theta_loss != narrow


EXECUTIONS = {
    "chunks": {"chunk_size": 1},
    "one by one": {"vectorize_particles": False},
    "sleep": {"insomnia": 0.5},
    "defensive": {"defensive": 0.2, "num_particles": 3, "chunk_size": 2},
}


@pytest.mark.parametrize("name", [n if n == "chunks" else pytest.param(n, marks=pytest.mark.slow) for n in EXECUTIONS])
def test_static_arguments_pass_through_all_that_a_step_does(name):
    """`init`, steps, `get_params` and the loss, in trees of arrays and at the side of them."""
    model, guide, _ = programs()
    options = EXECUTIONS[name]
    by_dict = lambda program: lambda x, config: program(x["data"], config["mode"])
    args = {"data": X, "x": X}, {"mode": "wide", "rate": 1.0, "sizes": (1, None)}
    shown = {"simulated_data_to_args": lambda data, x, config: (({"data": data["x"]}, config), {})}
    rws = rws_jax.make_step(by_dict(model), by_dict(guide), **options, **(shown if name == "sleep" else {}))
    state, info = rws.step(rws.init(jax.random.key(0), *args), *args)
    bound = rws_jax.make_step(partial(model, mode="wide"), partial(guide, mode="wide"), **options)
    assert jnp.allclose(bound.step(bound.init(jax.random.key(0), X), X)[1].phi_loss, info.phi_loss)
    assert rws.get_params(state, *args).keys() == {"m"}


@pytest.mark.slow
def test_static_arguments_pass_through_fit():
    model, guide, traces = programs()
    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), X, "wide")
    fit = lambda step, **kwargs: rws_jax.fit(step, state, 3, progress_bar=False, **kwargs)[1].phi_loss
    whole = rws_jax.fit(rws.step, state, 3, X, "wide", progress_bar=False)[1].phi_loss
    num_traces = len(traces)
    assert jnp.allclose(fit(rws.step, batches=[X] * 3, mode="wide"), whole)
    bound = lambda state, x, mode: rws.step(state, x, mode)  # a function of the user's, which sees plain values
    assert jnp.allclose(fit(bound, batches=[X] * 3, mode="wide"), whole)
    assert jnp.allclose(rws_jax.fit(bound, state, 3, X, "wide", progress_bar=False)[1].phi_loss, whole)
    assert len(traces) <= num_traces + 15


@pytest.mark.slow
def test_static_arguments_pass_through_paths_and_data_axes():
    """Whether programs branch at all depends on the argument."""

    def model(x, kind):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer={"branching": kind == "branching"})
        scale = (3.0 if z else 1.0) if kind == "branching" else jnp.where(z, 3.0, 1.0)
        numpyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x, kind):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("m", 0.0) + 0.0 * x))

    def loss_of(kind):
        rws = rws_jax.make_step(model, guide, num_particles=40, data_axes=0)
        _, info = rws.step(rws.init(jax.random.key(0), X, kind), X, kind)
        assert (info.num_paths is None) == (kind == "plain")
        return info.phi_loss

    assert jnp.allclose(loss_of("plain"), loss_of("branching"))
    seeded = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
    losses = [
        rws_jax.wake_phi_loss({}, {"m": 0.0}, *seeded, X, kind, num_particles=3, data_axes=(0, None))
        for kind in ("plain", "branching")
    ]
    assert jnp.allclose(*losses)


@pytest.mark.slow
def test_static_arguments_pass_through_svi():
    model, guide, _ = programs()
    svi = SVI(model, guide, optax.adam(0.1), loss=rws_jax.ReweightedWakeSleep())
    run = svi.run(jax.random.key(0), 2, X, Family.WIDE, progress_bar=False)
    _, loss = svi.update(svi.init(jax.random.key(0), X, Family.WIDE), X, Family.WIDE)
    assert jnp.allclose(run.losses[0], loss)


@pytest.mark.slow
def test_static_arguments_pass_through_the_losses():
    model, guide, _ = programs()
    seeded = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
    loss = rws_jax.wake_theta_loss({}, {"m": 0.0}, *seeded, X, mode="wide")
    under_jit = jax.jit(lambda x, mode: rws_jax.wake_theta_loss({}, {"m": 0.0}, *seeded, x, mode), static_argnums=1)
    assert jnp.allclose(under_jit(X, "wide"), loss)


def test_a_step_is_lowered_with_static_arguments():
    model, guide, _ = programs()
    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), X, "wide")
    abstract = jax.ShapeDtypeStruct(X.shape, X.dtype)
    for x in (X, abstract):
        assert rws.step.lower(state, x, mode="wide").compile().cost_analysis()["flops"] > 0


# Arrays of other libraries


class Foreign:
    """Like a tensor of torch or a series of pandas: numpy can read it."""

    dtype, shape = "float64", (3,)

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values)


class OnDevice(Foreign):
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert a device tensor to numpy")


class Table:
    """Like a data frame, which has columns and no one type."""

    shape = (3, 1)

    def __array__(self, dtype=None, copy=None):
        return np.ones((3, 1))


def test_arrays_of_other_libraries_are_read_by_numpy():
    model, guide, _ = programs()
    rws = rws_jax.make_step(model, guide)
    foreign = Foreign(np.asarray(X))
    state = rws.init(jax.random.key(0), foreign, "wide")
    assert rws.step(state, foreign, "wide")[1].phi_loss == rws.step(state, X, "wide")[1].phi_loss
    _, infos = rws_jax.fit(rws.step, state, 1, foreign, "wide", progress_bar=False)
    assert infos.phi_loss.shape == (1,)
    seeded = seed(model, jax.random.key(0)), seed(guide, jax.random.key(1))
    losses = [rws_jax.wake_phi_loss({}, {"m": 0.0}, *seeded, x, "wide") for x in (foreign, X)]
    assert losses[0] == losses[1]


BAD_ARGUMENTS = {
    "table": (Table(), ["argument 'x' is a", "Table", "dict of its columns"]),
    "text": (np.array(["a", "b"]), ["argument 'x' is no array of numbers", "dtype <U1", "integers"]),
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), ["argument 'x' is no array of numbers", "datetime64"]),
    "objects": (Foreign([1, None]), ["argument 'x' is no array of numbers", "dtype object"]),
    "device": (OnDevice(None), ["argument 'x' is no array of numbers", "device tensor", "detach().cpu().numpy()"]),
    "in a tree": ({"a": X, "b": [Table()]}, ["argument 'x'['b'][0] is a"]),
    "dataclass of arrays": (Config(X), ["argument 'x' is neither an array nor hashable", "register_dataclass"]),
}


@pytest.mark.parametrize("by", ["init", "step", "loss"])
@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_what_is_neither_traced_nor_static_is_refused_by_name(name, by):
    model, guide, _ = programs()
    argument, words = BAD_ARGUMENTS[name]
    rws = rws_jax.make_step(model, guide)
    calls = {
        "init": lambda: rws.init(jax.random.key(0), argument, "wide"),
        "step": lambda: rws.step(None, argument, "wide"),
        "loss": lambda: rws_jax.wake_phi_loss({}, {"m": 0.0}, seed(model, 0), seed(guide, 1), argument, "wide"),
    }
    with pytest.raises(TypeError) as error:
        calls[by]()
    check(error, TypeError, *words)


def test_arguments_by_keyword_and_beyond_the_signature_are_named_as_well():
    with pytest.raises(TypeError, match=r"argument 'table'\['a'\] is a"):
        Arguments.of((), {"table": {"a": Table()}})
    with pytest.raises(TypeError, match="argument 1 is a"):
        Arguments.of((X, Table()), {}, lambda x, *rest: None)


@pytest.mark.parametrize("insomnia", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_lists_are_trees_and_no_data(insomnia):
    def model(x):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0) * jnp.asarray(x), 1.0))

    with pytest.raises(TypeError, match="the value of site 'x' of the model is no array") as error:
        rws_jax.make_step(model, guide, insomnia=insomnia).init(jax.random.key(0), [0.5, -1.0, 2.0])
    check(error, TypeError, "a list", "jnp.asarray(...)")
    rws = rws_jax.make_step(lambda x: model(jnp.asarray(x)), guide)
    state = rws.init(jax.random.key(0), [0.5, -1.0, 2.0])
    assert rws.step(state, [0.5, -1.0, 2.0])[1].phi_loss == rws.step(state, [*X])[1].phi_loss
