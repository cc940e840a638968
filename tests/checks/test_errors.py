"""Every message fires, is of the right kind, and names the site or option and the remedy."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed
from numpyro.infer.autoguide import AutoDelta, AutoDiagonalNormal

import rws_jax
from rws_jax.options import NAMES

X = jnp.array([0.5, -1.0, 2.0])
NORMAL = dist.Normal(0.0, 1.0)


def model(x):
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", NORMAL)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0) + 0.0 * x, 1.0))


def check(error, kind, *words):
    """The message has the one shape of the package, and says these words."""
    assert error.type is kind
    message = str(error.value)
    assert [line.split(":")[0].strip() for line in message.split("\n")[1:]] == ["expected", "found", "hint"]
    for word in words:
        assert word in message


# options

BAD_OPTIONS = [
    ({"num_particles": 1}, ValueError, "'num_particles'"),
    ({"num_particles": 2.0}, TypeError, "'num_particles'"),
    ({"num_particles": True}, TypeError, "'num_particles'"),
    ({"insomnia": 0.0, "num_particles": 0}, ValueError, "'num_particles'"),
    ({"num_sleep_particles": 0}, ValueError, "'num_sleep_particles'"),
    ({"insomnia": 1.5}, ValueError, "'insomnia'"),
    ({"insomnia": -0.1}, ValueError, "'insomnia'"),
    ({"insomnia": float("nan")}, ValueError, "'insomnia'"),
    ({"insomnia": "half"}, TypeError, "'insomnia'"),
    ({"insomnia": True}, TypeError, "'insomnia'"),
    ({"theta_optimizer": 1e-3}, TypeError, "'theta_optimizer'"),
    ({"phi_optimizer": numpyro.optim.Adam(1e-3)}, TypeError, "'phi_optimizer'"),
    ({"observed_sites": "x"}, TypeError, "'observed_sites'"),
    ({"observed_sites": None}, TypeError, "'observed_sites'"),
    ({"simulated_data_to_args": {}}, TypeError, "'simulated_data_to_args'"),
    ({"phi_steps": 0}, ValueError, "'phi_steps'"),
    ({"phi_steps": 1.5}, TypeError, "'phi_steps'"),
    ({"shared_params": 1}, TypeError, "'shared_params'"),
    ({"model_has_params": "no"}, TypeError, "'model_has_params'"),
]

BAD_LOSS_OPTIONS = [
    ({"control_variate": None}, TypeError, "'control_variate'"),
    ({"defensive": 1.0}, ValueError, "'defensive'"),
    ({"defensive": -0.2}, ValueError, "'defensive'"),
    ({"defensive": float("nan")}, ValueError, "'defensive'"),
    ({"defensive": "prior"}, TypeError, "'defensive'"),
    ({"defensive": True}, TypeError, "'defensive'"),
    ({"defensive_guide": lambda x: None}, ValueError, "'defensive_guide'"),
    ({"gradient": "pathwise"}, ValueError, "'gradient'"),
    ({"gradient": np.array(["dreg", "score"])}, ValueError, "'gradient'"),
    ({"gradient": "dreg", "defensive": 0.2}, ValueError, "'gradient' and 'defensive'"),
    ({"vectorize_particles": 0}, TypeError, "'vectorize_particles'"),
    ({"chunk_size": 0}, ValueError, "'chunk_size'"),
    ({"chunk_size": 10.0}, TypeError, "'chunk_size'"),
    ({"chunk_size": True}, TypeError, "'chunk_size'"),
    ({"chunk_size": 10, "vectorize_particles": False}, ValueError, "'chunk_size' and 'vectorize_particles'"),
]


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    BAD_OPTIONS + BAD_LOSS_OPTIONS,
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_bad_options_are_refused_when_the_step_is_made(options, kind, word):
    with pytest.raises(kind) as error:
        rws_jax.make_step(model, guide, **options)
    check(error, kind, word)


@pytest.mark.parametrize(
    ("options", "kind", "word"), BAD_LOSS_OPTIONS, ids=lambda v: "-".join(v) if isinstance(v, dict) else ""
)
def test_bad_options_are_refused_by_the_loss(options, kind, word):
    with pytest.raises(kind) as error:
        rws_jax.wake_phi_loss({}, {"m": 0.0}, seed(model, 0), seed(guide, 1), X, **options)
    check(error, kind, word)


@pytest.mark.parametrize("schedule", [lambda step: 1.5, lambda step: jnp.nan, lambda step: jnp.array(-1.0)])
def test_a_schedule_is_checked_at_its_first_step(schedule):
    with pytest.raises(ValueError, match="option 'insomnia' is out of range") as error:
        rws_jax.make_step(model, guide, insomnia=schedule).init(jax.random.key(0), X)
    check(error, ValueError, "[0, 1]")


def test_a_schedule_returns_one_number():
    with pytest.raises(TypeError) as error:
        rws_jax.make_step(model, guide, insomnia=lambda step: jnp.ones(3)).init(jax.random.key(0), X)
    check(error, TypeError, "'insomnia'", "(3,)")


@pytest.mark.parametrize("loss", [rws_jax.wake_theta_loss, rws_jax.wake_phi_loss])
def test_one_particle_is_too_few_for_wake_losses(loss):
    with pytest.raises(ValueError, match="num_particles") as error:
        loss({}, {"m": 0.0}, seed(model, 0), seed(guide, 1), X, num_particles=1)
    check(error, ValueError, "'num_particles'", "num_particles=10")


def test_one_particle_is_too_few_where_the_model_has_parameters():
    def with_param(x):
        numpyro.param("w", 0.0)
        model(x)

    rws = rws_jax.make_step(
        with_param, guide, insomnia=0.0, num_particles=1, simulated_data_to_args=lambda s, x: ((s["x"],), {})
    )
    with pytest.raises(ValueError, match="num_particles") as error:
        rws.init(jax.random.key(0), X)
    check(error, ValueError, "'num_particles'")


@pytest.mark.floors
@pytest.mark.parametrize("key", [0, jnp.zeros(3), None, jax.random.split(jax.random.key(0))])
def test_init_takes_one_key(key):
    with pytest.raises(TypeError) as error:
        rws_jax.make_step(model, guide).init(key, X)
    check(error, TypeError, "jax.random.key(0)")


# programs


def test_programs_are_callable_and_unseeded_for_make_step():
    with pytest.raises(TypeError) as error:
        rws_jax.make_step(None, guide)
    check(error, TypeError, "the model is not callable")
    with pytest.raises(ValueError, match="seeded already") as error:
        rws_jax.make_step(model, numpyro.handlers.mask(seed(guide, 0), mask=True))
    check(error, ValueError, "the guide", "same noise")


@pytest.mark.parametrize("loss", [rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss])
@pytest.mark.parametrize("bare", ["model", "guide"])
def test_programs_are_seeded_for_losses(loss, bare):
    programs = [model if bare == "model" else seed(model, 0), guide if bare == "guide" else seed(guide, 1)]
    with pytest.raises(TypeError) as error:
        loss({}, {"m": 0.0}, *programs, X, num_particles=2)
    check(error, TypeError, f"the {bare} is not seeded", f"numpyro.handlers.seed({bare}, rng_key)")


def in_plate(*sites):
    def program(x):
        with numpyro.plate("data", 3):
            for name, fn in sites:
                numpyro.sample(name, fn)

    return program


def in_plate_with(infer):
    def program(x):
        with numpyro.plate("data", 3):
            numpyro.sample("z", NORMAL, infer=infer)

    return program


def column_model(x):
    with numpyro.plate("data", 3, dim=-2):
        numpyro.sample("z", dist.Normal(jnp.zeros((3, 3)), 1.0))


def column_guide(x):
    with numpyro.plate("data", 3, dim=-1):
        numpyro.sample("z", dist.Normal(jnp.zeros((3, 3)), 1.0))


ORDERED = dist.TransformedDistribution(dist.Normal(jnp.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform())


def latents(x):
    with numpyro.plate("data", 3):
        numpyro.sample("z", NORMAL)
        numpyro.sample("y", NORMAL)
        numpyro.sample("x", NORMAL, obs=x)


def observing_guide(x):
    with numpyro.plate("data", 3):
        numpyro.sample("z", NORMAL)
        numpyro.sample("x", NORMAL, obs=x)


def factor_guide(x):
    guide(x)
    numpyro.factor("penalty", jnp.zeros(()))


def vector_model(x):
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(axis=-1), 1.0), obs=x)


def no_plate_guide(x):
    numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))


def other_plate_guide(x):
    with numpyro.plate("images", 3):
        numpyro.sample("z", NORMAL)


def event_guide(x):
    numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))


def two_dim_guide(x):
    with numpyro.plate("data", 4):
        numpyro.sample("z", NORMAL)


def subsampled(size):
    def program(x):
        with numpyro.plate("data", size, subsample_size=3):
            numpyro.sample("z", NORMAL)
            numpyro.sample("x", NORMAL, obs=x)

    return program


def subsampled_guide(x):
    with numpyro.plate("data", 6, subsample_size=3):
        numpyro.sample("z", NORMAL)


def global_model(x):
    mu = numpyro.sample("mu", NORMAL)
    with numpyro.plate("data", 6, subsample_size=3):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def global_guide(x):
    numpyro.sample("mu", NORMAL)


def same_param_model(x):
    numpyro.param("m", 0.0)
    model(x)


def scan_model(x):
    def step(carry, x):
        numpyro.sample("z", dist.Normal(numpyro.param("w", 0.0), 1.0))
        numpyro.sample("x", NORMAL, obs=x)
        return carry, None

    scan(step, 0.0, x)


def scan_guide(length):
    def program(x):
        scan(lambda carry, _: (carry, numpyro.sample("z", NORMAL)), 0.0, None, length=length)

    return program


def plain_scan_model(x):
    def step(carry, x):
        numpyro.sample("z", NORMAL)
        numpyro.sample("x", NORMAL, obs=x)
        return carry, None

    scan(step, 0.0, x)


def subsampled_scan_model(x):
    def step(carry, x):
        with numpyro.plate("data", 30, subsample_size=3):
            numpyro.sample("z", NORMAL)
        numpyro.sample("x", NORMAL, obs=x)
        return carry, None

    scan(step, 0.0, x)


MISMATCHES = {
    "missing latent": (latents, guide, ["latent site 'y' of the model is missing", "numpyro.sample('y', ...)"]),
    "extra site": (model, in_plate(("z", NORMAL), ("u", NORMAL)), ["sample site 'u' of the guide", "'is_auxiliary'"]),
    "dim of plate": (column_model, column_guide, ["plates differ at latent site 'z'", "dim=-2", "dim=-1"]),
    "support within": (model, in_plate(("z", dist.LogNormal(0.0, 1.0))), ["'z'", "real numbers from 0", "dist.Normal"]),
    "support of fewer": (
        in_plate(("z", dist.Categorical(jnp.ones(5) / 5))),
        in_plate(("z", dist.Categorical(jnp.ones(3) / 3))),
        ["supports differ at latent site 'z'", "integers from 0 to 4", "integers from 0 to 2", "as many categories"],
    ),
    "support of counts": (
        in_plate(("z", dist.Poisson(2.0))),
        in_plate(("z", dist.Bernoulli(0.5))),
        ["supports differ at latent site 'z'", "integers from 0,", "integers from 0 to 1", "dist.Poisson"],
    ),
    "discrete for continuous": (
        in_plate(("z", dist.Gamma(2.0, 1.0))),
        in_plate(("z", dist.Poisson(2.0))),
        ["supports differ at latent site 'z'", "Gamma in the model", "Poisson in the guide", "dist.LogNormal"],
    ),
    "continuous for discrete": (
        in_plate(("z", dist.Bernoulli(0.5))),
        in_plate(("z", NORMAL)),
        ["supports differ at latent site 'z'", "Bernoulli in the model", "use dist.Bernoulli in the guide"],
    ),
    "support of vectors": (
        in_plate(("z", dist.Dirichlet(jnp.ones(3)))),
        in_plate(("z", ORDERED)),
        ["supports differ at latent site 'z'", "Simplex", "OrderedVector", "dist.Dirichlet"],
    ),
    "enumeration": (
        model,
        in_plate_with({"enumerate": "parallel"}),
        ["site 'z' of the guide is annotated for enumeration", "'parallel'", "config_enumerate"],
    ),
    "observed in guide": (model, observing_guide, ["the guide has observed site 'x'"]),
    "factor in guide": (model, factor_guide, ["the guide has a factor at site 'penalty'"]),
    "shape": (vector_model, guide, ["shapes differ at latent site 'z'", "(3, 2)", "(3,)"]),
    "size of plate": (
        model,
        two_dim_guide,
        ["shapes differ at latent site 'z'", "(3,), its shape in the model with plates data(size=3, dim=-1)", "(4,)"],
    ),
    "event dim": (model, event_guide, ["event dimensions differ at latent site 'z'", "to_event()"]),
    "no plate": (model, no_plate_guide, ["plates differ at latent site 'z'", "data(size=3, dim=-1)", "no plate"]),
    "other plate": (model, other_plate_guide, ["plates differ at latent site 'z'", "images(size=3, dim=-1)"]),
    "size of subsampled plate": (subsampled(12), subsampled_guide, ["plate 'data' differs", "12", "6"]),
    "subsampling in one of both": (
        subsampled(12),
        in_plate(("z", NORMAL)),
        ["plate 'data' differs", "size 12, subsample size 3, as in the model", "size 3, subsample size 3 in the guide"],
    ),
    "plate that does not enclose all": (global_model, global_guide, ["plate 'data' is subsampled (3 of 6)", "['mu']"]),
    "param in both": (same_param_model, guide, ["param sites ['m'] occur in both model and guide", "rename"]),
    "param in scan": (scan_model, scan_guide(3), ["param 'w' of the model is inside a scan or cond"]),
    "subsampled plate in scan": (
        subsampled_scan_model,
        scan_guide(3),
        ["subsampled plate 'data' of the model is inside"],
    ),
    "delta in a plate": (model, in_plate(("z", dist.Delta(0.5))), ["site 'z' of the guide is a Delta"]),
    "delta": (model, AutoDelta(model), ["site 'z' of the guide is a Delta", "AutoNormal"]),
    "length of scan": (plain_scan_model, scan_guide(4), ["shapes differ at latent site 'z'", "(3,)", "(4,)", "length"]),
}


@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
@pytest.mark.parametrize("name", MISMATCHES)
def test_programs_that_do_not_fit_are_refused_by_init(name):
    bad_model, bad_guide, words = MISMATCHES[name]
    with pytest.raises(ValueError, match="expected") as error:
        rws_jax.make_step(bad_model, bad_guide).init(jax.random.key(0), X)
    check(error, ValueError, *words)


@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
@pytest.mark.parametrize("name", [name for name in MISMATCHES if name not in ("param in both", "delta")])
def test_programs_that_do_not_fit_are_refused_by_the_losses(name):
    bad_model, bad_guide, words = MISMATCHES[name]
    with pytest.raises(ValueError, match="expected") as error:
        rws_jax.wake_theta_loss({}, {"m": 0.0}, seed(bad_model, 0), seed(bad_guide, 1), X)
    check(error, ValueError, *words)


DREAMT_MISMATCHES = ["missing latent", "extra site", "dim of plate", "support within", "size of plate", "event dim"]
DREAMT_MISMATCHES += ["no plate", "other plate", "size of subsampled plate", "subsampling in one of both"]
DREAMT_MISMATCHES += ["plate that does not enclose all", "delta in a plate", "length of scan"]


@pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
@pytest.mark.parametrize("name", DREAMT_MISMATCHES)
def test_programs_that_do_not_fit_are_refused_by_sleep_alone(name):
    """A guide whose plate has the size of the minibatch would have its loss divided by size / subsample size."""
    bad_model, bad_guide, _ = MISMATCHES[name]
    loss = lambda x: rws_jax.sleep_phi_loss({}, {"m": 0.0}, seed(bad_model, 0), seed(bad_guide, 1), x)
    init = lambda x: rws_jax.make_step(bad_model, bad_guide, insomnia=0.0).init(jax.random.key(0), x)
    messages = set()
    for sleep in (loss, jax.jit(loss), init):
        with pytest.raises(ValueError, match="expected") as error:
            sleep(X)
        check(error, ValueError)
        messages.add(str(error.value))
    assert len(messages) == 1


def test_parameters_must_all_have_values():
    with pytest.raises(ValueError, match="no value in phi") as error:
        rws_jax.wake_phi_loss({}, {"other": 0.0}, seed(model, 0), seed(guide, 1), X)
    check(error, ValueError, "param site 'm' of the guide", "['other']")
    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), X)
    other = state._replace(phi={"n": jnp.zeros(())}, phi_opt_state=optax.adam(1e-3).init({"n": 0.0}))
    with pytest.raises(ValueError, match="the state is of another model, guide, optimizer or precision") as error:
        rws.step(other, X)
    check(error, ValueError, "phi['m'] float32[]", "phi['m'] absent")
    with pytest.raises(ValueError, match="no value in phi") as error:
        rws.get_params(other, X)
    check(error, ValueError, "'m'", "state belongs to the programs")


@pytest.mark.parametrize("options", [{}, {"insomnia": 0.0}, {"vectorize_particles": False}], ids=str)
def test_get_params_without_the_arguments_of_the_programs_says_why_it_needs_them(options):
    rws = rws_jax.make_step(model, guide, **options)
    state = rws.init(jax.random.key(0), X)
    for args, kwargs, word in (
        ((), {}, "missing a required argument: 'x'"),
        ((X, X), {}, "too many positional arguments"),
        ((), {"y": X}, "by keyword ['y']"),
    ):
        with pytest.raises(TypeError, match="get_params runs both programs") as error:
            rws.get_params(state, *args, **kwargs)
        check(error, TypeError, word, "not those of the model", "rws.get_params(state, *args, **kwargs)")
    with pytest.raises(TypeError, match="the first argument of get_params is not a state") as error:
        rws.get_params(state.phi, X)
    check(error, TypeError, "RWSState")


def test_arguments_of_get_params_may_be_wrong_for_the_guide_alone():
    rws = rws_jax.make_step(lambda x, y=None: model(x), guide)
    state = rws.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match="not those of the guide") as error:
        rws.get_params(state, X, X)
    check(error, TypeError, "too many positional arguments")
    shown = lambda data, x, y: ((data["x"],), {})
    rws = rws_jax.make_step(lambda x, y: model(x), guide, insomnia=0.0, simulated_data_to_args=shown)
    assert rws.get_params(rws.init(jax.random.key(0), X, X), X, X) == {"m": 0.0}


def test_parameters_go_before_programs():
    with pytest.raises(TypeError, match="theta is not a dict") as error:
        rws_jax.wake_phi_loss(seed(model, 0), seed(guide, 1), {}, {"m": 0.0}, X)
    check(error, TypeError, "(theta, phi, seeded_model, seeded_guide, *args)")


def test_the_state_goes_before_the_data():
    with pytest.raises(TypeError, match="the first argument of step is not a state") as error:
        rws_jax.make_step(model, guide).step(X)
    check(error, TypeError, "rws.step(state, *args)", f"{X.dtype}[3]")


@pytest.mark.parametrize(
    "option",
    [
        {"num_particles": np.int64(3)},
        {"insomnia": np.float32(1.0)},
        {"insomnia": jnp.array(1.0)},
        {"defensive": jnp.array(0.2)},
        {"shared_params": np.bool_(1)},
    ],
    ids=str,
)
def test_numpy_numbers_are_numbers(option):
    rws_jax.make_step(model, guide, **option)


def test_a_parameter_must_not_start_at_the_edge_of_its_constraint():
    def edge_guide(x):
        scale = numpyro.param("scale", 0.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", 3):
            numpyro.sample("z", dist.Normal(0.0, 1.0 + scale))

    with pytest.raises(ValueError, match="edge of its constraint") as error:
        rws_jax.make_step(model, edge_guide).init(jax.random.key(0), X)
    check(error, ValueError, "param site 'scale'", "1e-3")


def test_bad_data_are_refused_by_init():
    blind_guide = in_plate(("z", NORMAL))
    with pytest.raises(ValueError, match="data at observed site 'x'") as error:
        rws_jax.make_step(model, blind_guide).init(jax.random.key(0), X.at[1].set(jnp.nan))
    check(error, ValueError, "1 such values", "numpyro.handlers.mask")


def test_sizes_among_the_arguments_are_told_by_init():
    sized = lambda x, size: model(x + jnp.zeros(size))
    with pytest.raises(TypeError, match="cannot be compiled") as error:
        rws_jax.make_step(sized, lambda x, size: guide(x)).init(jax.random.key(0), X, 3)
    check(error, TypeError, "functools.partial")


def test_data_that_a_program_closes_over_are_no_obstacle():
    y = jnp.array([1.0, 2.0])

    def closing_model(x):
        model(x)
        with numpyro.plate("others", 2):
            numpyro.sample("y", dist.Normal(numpyro.param("mu", 0.0), 1.0), obs=y)

    state = rws_jax.make_step(closing_model, guide).init(jax.random.key(0), X)
    jitted = jax.jit(rws_jax.make_step(closing_model, guide).init)(jax.random.key(0), X)
    assert state.theta == jitted.theta


def test_model_has_params_must_be_true_to_its_word():
    def with_param(x):
        numpyro.param("w", 0.0)
        model(x)

    with pytest.raises(ValueError, match="model_has_params") as error:
        rws_jax.make_step(with_param, guide, model_has_params=False).init(jax.random.key(0), X)
    check(error, ValueError, "['w']", "optax.set_to_zero()")


# sleep


def rescaled_model(x):
    """What it observes is none of its arguments."""
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", NORMAL)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=2.0 * x)


def other_name_guide(data):
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Normal(data, 1.0))


def any_arguments_guide(*args, **kwargs):
    guide(*args, **kwargs)


def factor_model(x):
    model(x)
    numpyro.factor("penalty", jnp.zeros(()))


def improper_model(x):
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def obs_mask_model(x):
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", NORMAL)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=jnp.array([True, False, True]))


def shifted_model(x):
    """Autoregressive on the real data."""
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", NORMAL)
        numpyro.sample("x", dist.Normal(z + jnp.roll(x, 1), 1.0), obs=x)


def mean_model(x):
    """Centred on the real data."""
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(x.mean(), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def centred_model(images):
    """The same in another way: the argument has another name than the site."""
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(images, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=images)


def auxiliary_guide(x):
    with numpyro.plate("data", 3):
        u = numpyro.sample("u", NORMAL, infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Normal(u, 1.0))


def unobserved_model(x):
    with numpyro.plate("data", 3):
        numpyro.sample("z", NORMAL)


def indexing_model(x):
    with numpyro.plate("data", 3, subsample_size=2) as index:
        z = numpyro.sample("z", NORMAL)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def indexing_guide(x):
    with numpyro.plate("data", 3, subsample_size=2) as index:
        numpyro.sample("z", dist.Normal(x[index], 1.0))


UNDREAMABLE = {
    "argument of another name": (
        rescaled_model,
        other_name_guide,
        {},
        ["sleep cannot hand its dreams", "['x']", "'data'", "the very array that the model observes"],
    ),
    "arguments without names": (rescaled_model, any_arguments_guide, {}, ["sleep cannot hand its dreams", "'*args'"]),
    "factor": (factor_model, guide, {}, ["sleep cannot dream", "site 'penalty' is a numpyro.factor", "insomnia=1.0"]),
    "improper": (improper_model, guide, {}, ["site 'z' is an improper prior", "insomnia=1.0"]),
    "auxiliary": (model, auxiliary_guide, {}, ["auxiliary site 'u'", "AutoNormal"]),
    "observed in part": (obs_mask_model, guide, {}, ["sleep cannot dream site 'x'", "obs_mask", "handlers.mask"]),
    "no data": (unobserved_model, guide, {}, ["no data to dream", "observed_sites=('x',)"]),
    "unknown data": (model, guide, {"observed_sites": ("y",)}, ["'observed_sites' names ['y']", "['x', 'z']"]),
    "minibatch of full data": (indexing_model, indexing_guide, {}, ["observed site 'x'", "(3,)", "(2,)", "minibatch"]),
    "the same, by observations": (
        indexing_model,
        lambda x, observations=None: indexing_guide((observations or {"x": x})["x"]),
        {},
        ["sleep cannot dream a minibatch", "observed site 'x'", "(2,)", "full data of shape (3,)"],
    ),
    "joint autoguide": (
        model,
        AutoDiagonalNormal(model),
        {},
        ["cannot train the automatic guide 'AutoDiagonalNormal'", "AutoNormal"],
    ),
    "point autoguide": (model, AutoDelta(model), {}, ["cannot train the automatic guide 'AutoDelta'", "AutoNormal"]),
    "missing latent": (latents, guide, {}, ["latent site 'y' of the model is missing"]),
    "extra site": (model, in_plate(("z", NORMAL), ("u", NORMAL)), {}, ["sample site 'u' of the guide"]),
    "shape": (vector_model, guide, {}, ["shapes differ at latent site 'z'", "(3,), its shape in the guide"]),
}


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("name", UNDREAMABLE)
@pytest.mark.parametrize("by", ["init", "loss"])
def test_sleep_refuses_what_it_would_get_wrong(name, by):
    bad_model, bad_guide, options, words = UNDREAMABLE[name]
    if by == "init":
        sleep = partial(rws_jax.make_step(bad_model, bad_guide, insomnia=0.5, **options).init, jax.random.key(0), X)
    else:
        seeded = seed(bad_model, 0), seed(bad_guide, 1)
        sleep = partial(rws_jax.sleep_phi_loss, {}, {"m": 0.0}, *seeded, X, **options)
    with pytest.raises(ValueError, match="expected") as error:
        sleep()
    check(error, ValueError, *words)


def test_a_guide_that_cannot_take_the_arguments_of_the_model_is_named():
    with pytest.raises(TypeError, match="cannot be called with the arguments of the model") as error:
        rws_jax.make_step(lambda x, covariate: model(x), guide, insomnia=0.0).init(jax.random.key(0), X, X)
    check(error, TypeError, "'guide'", "too many positional arguments", "simulated_data_to_args")


@pytest.mark.parametrize("value", [None, X, ((X,), None), (X, {})])
def test_simulated_data_to_args_returns_a_pair(value):
    options = {"insomnia": 0.0, "simulated_data_to_args": lambda sim, *args: value}
    with pytest.raises(TypeError) as error:
        rws_jax.make_step(model, guide, **options).init(jax.random.key(0), X)
    check(error, TypeError, "'simulated_data_to_args'", "(args, kwargs)")


@pytest.mark.parametrize(
    ("bad_model", "options"),
    [
        (shifted_model, {}),
        (mean_model, {}),
        (centred_model, {"simulated_data_to_args": lambda sim, *_: ((sim["x"],), {})}),
    ],
)
def test_dreams_that_depend_on_the_real_data_are_refused(bad_model, options):
    rws = rws_jax.make_step(bad_model, guide, insomnia=0.5, **options)
    with pytest.raises(ValueError, match="dreams depend on the real data") as error:
        rws.init(jax.random.key(0), X)
    check(error, ValueError, "observed site 'x'", "argument of its own", "insomnia=1.0")
    rws_jax.make_step(bad_model, guide).init(jax.random.key(0), X)  # wake is right


def test_covariates_are_not_taken_for_data():
    """In a container, as the very array that is also the data, and beside lists of any kind."""

    def covariate_model(covariate, x, layers):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(covariate["c"], 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    rws = rws_jax.make_step(covariate_model, lambda covariate, x, layers: guide(x), insomnia=0.5)
    state = rws.init(jax.random.key(0), {"c": X}, X, [X, X[:2], 3.0])
    _, info = rws.step(state, {"c": X}, X, [X, X[:2], 3.0])
    assert bool(info.finite)


# defensive proposals, reparameterised gradients


def u_guide(fn):
    return in_plate(("z", fn))


DEFENSIVE = {
    "parameters": (guide, model, guide, ["the defensive guide has parameters", "['m']"]),
    "observed": (observing_guide, model, guide, ["the defensive guide has observed site 'x'"]),
    "other sites": (in_plate(("y", NORMAL)), model, guide, ["guide and defensive guide draw different sites", "['y']"]),
    "shape": (no_plate_guide, model, guide, ["plates differ at latent site 'z'", "in the defensive guide"]),
    "support": (
        u_guide(dist.Poisson(1.0)),
        model,
        guide,
        ["supports differ at latent site 'z'", "use dist.Normal in the defensive guide"],
    ),
    "improper": (None, improper_model, guide, ["site 'z' of the model cannot be drawn", "pass defensive_guide"]),
    "scaled": (None, model, numpyro.handlers.scale(guide, scale=2.0), ["site 'z' of the guide is scaled", "handlers"]),
    "auxiliary": (None, model, auxiliary_guide, ["no auxiliary site 'u'", "pass defensive_guide"]),
}


@pytest.mark.parametrize(
    ("name", "by", "vectorize"),
    # One by one, sites may differ from particle to particle.
    [(name, by, True) for name in DEFENSIVE for by in ("init", "loss")]
    + [(name, "init", False) for name in DEFENSIVE if name != "other sites"],
)
@pytest.mark.filterwarnings("ignore:auxiliary site")
@pytest.mark.usefixtures("allow_key_reuse")
def test_bad_defensive_guides_are_refused(name, by, vectorize):
    defensive_guide, bad_model, bad_guide, words = DEFENSIVE[name]
    options = {"defensive": 0.6, "vectorize_particles": vectorize}
    if by == "init":
        rws = rws_jax.make_step(bad_model, bad_guide, defensive_guide=defensive_guide, **options)
        wake = partial(rws.init, jax.random.key(0), X)
    else:
        u = None if defensive_guide is None else seed(defensive_guide, 2)
        programs = seed(bad_model, 0), seed(bad_guide, 1)
        wake = partial(rws_jax.wake_phi_loss, {}, {"m": 0.0}, *programs, X, defensive_guide=u, **options)
    with pytest.raises(ValueError, match="expected") as error:
        wake()
    check(error, ValueError, *words)


def test_a_defensive_guide_is_seeded_for_losses_and_bare_for_make_step():
    with pytest.raises(TypeError, match="the defensive guide is not seeded") as error:
        rws_jax.wake_theta_loss(
            {}, {"m": 0.0}, seed(model, 0), seed(guide, 1), X, defensive=0.2, defensive_guide=u_guide(NORMAL)
        )
    check(error, TypeError, "seed(defensive_guide, rng_key)")
    with pytest.raises(ValueError, match="seeded already"):
        rws_jax.make_step(model, guide, defensive=0.2, defensive_guide=seed(u_guide(NORMAL), 0))
    with pytest.raises(TypeError, match="the defensive guide is not callable"):
        rws_jax.make_step(model, guide, defensive=0.2, defensive_guide="prior")


@pytest.mark.floors
def test_python_branches_on_draws_are_told_of_the_alternatives():
    def branching_guide(x):
        z = numpyro.sample("z", NORMAL)
        if z > 0:
            numpyro.sample("y", NORMAL)

    for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss):
        with pytest.raises(TypeError, match="cannot be compiled") as error:
            loss({}, {}, seed(model, 0), seed(branching_guide, 1), X)
        check(error, TypeError, "control_flow.cond", "handlers.mask", "vectorize_particles=False")


@pytest.mark.floors
@pytest.mark.parametrize("by", ["init", "loss"])
def test_dreg_names_the_site_that_is_not_reparameterised(by):
    discrete_model, discrete_guide = (
        in_plate(("z", NORMAL), ("k", dist.Bernoulli(0.5))),
        in_plate(("z", NORMAL), ("k", dist.Bernoulli(0.2))),
    )
    if by == "init":
        wake = partial(rws_jax.make_step(discrete_model, discrete_guide, gradient="dreg").init, jax.random.key(0), X)
    else:
        programs = seed(discrete_model, 0), seed(discrete_guide, 1)
        wake = partial(rws_jax.wake_phi_loss, {}, {}, *programs, X, gradient="dreg")
    with pytest.raises(ValueError, match="'dreg'") as error:
        wake()
    check(error, ValueError, "site 'k'", "Bernoulli", "gradient='score'")


def plain_guide(fn):
    return lambda: numpyro.sample("z", fn(numpyro.param("m", 0.5)))


UNFIT = {
    "wider than the model": (
        dist.HalfNormal(1.0),
        plain_guide(lambda m: dist.Normal(m, 1.0)),
        {"gradient": "dreg"},
        ["draws more than the model can at latent site 'z'", "real numbers from 0", "LogNormal", "gradient='score'"],
    ),
    "scaled": (
        dist.Normal(0.0, 1.0),
        numpyro.handlers.scale(plain_guide(lambda m: dist.Normal(m, 1.0)), scale=2.0),
        {"gradient": "dreg"},
        ["gradient='dreg'", "site 'z' of the guide is scaled"],
    ),
    "scaled, vimco": (
        dist.Normal(0.0, 1.0),
        numpyro.handlers.scale(plain_guide(lambda m: dist.Normal(m, 1.0)), scale=2.0),
        {"gradient": "vimco"},
        ["gradient='vimco'", "site 'z' of the guide is scaled"],
    ),
    "moving support": (
        dist.Uniform(0.0, 1.0),
        plain_guide(lambda m: dist.Uniform(0.0, 2.0 + m)),
        {},
        ["support of the guide at latent site 'z' depends on its parameters", "control_variate=False"],
    ),
    "real vectors for a simplex": (
        dist.Dirichlet(jnp.ones(3)),
        plain_guide(lambda m: dist.Normal(m * jnp.ones(3), 1.0).to_event(1)),
        {},
        ["supports differ at latent site 'z'", "Simplex", "dist.Dirichlet"],
    ),
}


@pytest.mark.usefixtures("allow_rank_promotion")
@pytest.mark.parametrize("name", UNFIT)
def test_guides_that_an_estimator_would_get_wrong_are_refused(name):
    prior, unfit_guide, options, words = UNFIT[name]
    unfit_model = lambda: numpyro.sample("z", prior)
    with pytest.raises(ValueError, match="expected") as error:
        rws_jax.make_step(unfit_model, unfit_guide, **options).init(jax.random.key(0))
    check(error, ValueError, *words)
    if name == "moving support":
        rws_jax.make_step(unfit_model, unfit_guide, control_variate=False).init(jax.random.key(0))


def test_guides_narrower_than_the_model_are_told():
    program = lambda: numpyro.sample("z", dist.Uniform(0.0, 10.0))
    with pytest.warns(UserWarning, match="'z' the guide draws real numbers from 2 to 10 alone"):
        rws_jax.make_step(program, plain_guide(lambda m: dist.Uniform(2.0, 10.0))).init(jax.random.key(0))


@pytest.mark.usefixtures("allow_key_reuse")
def test_python_branches_under_jit_are_told_where_particles_run_one_by_one():
    def branching_guide():
        if numpyro.sample("z", dist.Bernoulli(0.5)) == 1:
            numpyro.param("m", 0.0)

    rws = rws_jax.make_step(
        lambda: numpyro.sample("z", dist.Bernoulli(0.5)), branching_guide, vectorize_particles=False
    )
    with pytest.raises(TypeError, match="'vectorize_particles' is False, but the call is traced") as error:
        jax.jit(rws.step)(rws.init(jax.random.key(0)))
    check(error, TypeError, "un-jitted", "control_flow.cond")


def test_options_of_another_loss_are_not_passed_on_in_silence():
    programs = seed(lambda x, **kwargs: model(x), 0), seed(lambda x, **kwargs: guide(x), 1)
    with pytest.raises(TypeError, match="wake_theta_loss has no option 'gradient'") as error:
        rws_jax.wake_theta_loss({}, {"m": 0.0}, *programs, X, gradient="dreg")
    check(error, TypeError, "'defensive'", "help(rws_jax.make_step)")
    for option in NAMES - set(inspect.signature(rws_jax.wake_phi_loss).parameters):
        with pytest.raises(TypeError, match=f"wake_phi_loss has no option '{option}'"):
            rws_jax.wake_phi_loss({}, {"m": 0.0}, *programs, X, **{option: None})


# names and parameters that both sides have


def test_option_names_collide_with_arguments_of_programs():
    def clashing(x, gradient=None, num_particles=None):
        model(x)

    programs = seed(clashing, 0), seed(lambda x, *args: guide(x), 1)
    with pytest.raises(ValueError, match="argument 'gradient' of the model has the name of an option") as error:
        rws_jax.wake_phi_loss({}, {"m": 0.0}, *programs, X)
    check(error, ValueError, "wake_phi_loss", "['gradient', 'num_particles']", "functools.partial(model, gradient=...)")
    rws_jax.wake_phi_loss({}, {"m": 0.0}, *programs, X, "a", 3)
    bound = seed(partial(clashing, gradient="a", num_particles=3), 0)
    rws_jax.wake_phi_loss({}, {"m": 0.0}, bound, programs[1], X)
    with pytest.raises(ValueError, match="argument 'observed_sites' of the guide has the name of an option"):
        rws_jax.sleep_phi_loss({}, {"m": 0.0}, seed(model, 0), seed(lambda x, *, observed_sites=(): guide(x), 1), X)
    rws_jax.make_step(clashing, lambda x, **kwargs: guide(x)).init(jax.random.key(0), X, gradient=1.0, num_particles=3)


def test_shared_parameters_are_declared_alike():
    def positive_model(x):
        numpyro.param("m", 1.0, constraint=dist.constraints.positive)
        model(x)

    with pytest.raises(ValueError, match="shared param site 'm' differs") as error:
        rws_jax.make_step(positive_model, guide, shared_params=True).init(jax.random.key(0), X)
    check(error, ValueError, "Positive", "declare it alike")


def test_auxiliary_sites_without_a_density_in_the_model_are_told():
    with pytest.warns(UserWarning, match="auxiliary site 'u' of the guide has no density in the model"):
        rws_jax.make_step(model, auxiliary_guide).init(jax.random.key(0), X)
