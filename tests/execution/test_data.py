"""A data axis: programs of one datum, every datum a unit of its own."""

import chex
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.stats import norm

import rws_jax
from tests.checks.test_errors import check
from tests.oracles import draw, phi_loss, programs_of, seeded, theta_loss

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
X, SCALE = jnp.array([-0.5, 0.4, 1.0, 2.2]), jnp.array(0.8)
THETA, PHI = {"m": jnp.array(0.3)}, {"a": jnp.array(0.5)}


def model(x, scale):
    z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3), 1.0))
    numpyro.sample("x", dist.Normal(z, scale), obs=x)


def guide(x, scale):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5) * x, scale))


def in_plate(program):
    def of_all(x, scale):
        with numpyro.plate("data", len(x)):
            program(x, scale)

    return of_all


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"vectorize_particles": False}], ids=str)
def test_losses_are_those_of_a_plate_at_the_same_draws(options):
    """Densities written out by hand, of shape (particles, data)."""
    draws = draw(programs_of(model, guide, THETA, PHI, X, SCALE), 5, data_axes=(0, None)).latents["z"]

    def by_hand(theta, phi):
        log_p = norm.logpdf(draws, theta["m"]) + norm.logpdf(X, draws, SCALE)
        log_q = norm.logpdf(draws, phi["a"] * X, SCALE)
        return theta_loss(log_p, log_q), phi_loss(log_p, log_q, control_variate=True)

    def losses(theta, phi):
        args, fixed = (theta, phi, *seeded(model, guide), X, SCALE), {"num_particles": 5, "data_axes": (0, None)}
        return tuple(loss(*args, **fixed, **options) for loss in (rws_jax.wake_theta_loss, rws_jax.wake_phi_loss))

    values_and_jacobians = lambda f: lambda *params: (f(*params), jax.jacrev(f, argnums=(0, 1))(*params))
    package = values_and_jacobians(losses)
    if options.get("vectorize_particles", True):  # one by one particles run without compilation, which is all the row
        package = jax.jit(package)
    values, ((of_theta, nothing), (zero, of_phi)) = package(THETA, PHI)
    expected, ((expected_of_theta, _), (_, expected_of_phi)) = jax.jit(values_and_jacobians(by_hand))(THETA, PHI)
    chex.assert_trees_all_close(values, expected, rtol=1e-5)
    chex.assert_trees_all_close((of_theta, of_phi), (expected_of_theta, expected_of_phi), rtol=1e-4)
    assert nothing["a"] == zero["m"] == 0.0


def test_a_step_has_the_expectation_of_one_in_a_plate():
    options = {"num_particles": 3, "insomnia": 0.5, "theta_optimizer": optax.sgd(1.0), "phi_optimizer": optax.sgd(1.0)}
    moves = []
    for rws in (
        rws_jax.make_step(model, guide, data_axes=(0, None), **options),
        rws_jax.make_step(in_plate(model), in_plate(guide), **options),
    ):
        start = rws.init(jax.random.key(0), X, SCALE)
        step = lambda key, rws=rws, start=start: rws.step(start._replace(rng_key=key), X, SCALE)
        state, info = jax.vmap(step)(jax.random.split(jax.random.key(1), 4000))
        moves.append(jnp.stack([state.theta["m"], state.phi["a"], info.wake_theta_loss, info.phi_loss], axis=-1))
    difference = moves[0].mean(axis=0) - moves[1].mean(axis=0)
    assert jnp.all(jnp.abs(difference) < 5.0 * jnp.sqrt((moves[0].var(axis=0) + moves[1].var(axis=0)) / 4000))


def test_a_plate_within_a_datum_has_units_of_its_own():
    """Rows of data, each a datum, with a plate of columns: weights are those of single cells, as in two plates."""

    def in_plates(program):
        def of_all(x, scale):
            with numpyro.plate("rows", x.shape[0], dim=-2), numpyro.plate("columns", x.shape[1], dim=-1):
                program(x, scale)

        return of_all

    x = jnp.arange(6.0).reshape(2, 3) / 4.0
    pairs = [(in_plate(model), in_plate(guide), (0, None)), (in_plates(model), in_plates(guide), None)]

    def loss(key, programs, axes):
        keyed = (numpyro.handlers.seed(program, k) for program, k in zip(programs, jax.random.split(key), strict=True))
        return rws_jax.wake_theta_loss(THETA, PHI, *keyed, x, SCALE, num_particles=3, data_axes=axes)

    keys = jax.random.split(jax.random.key(0), 4000)
    found, expected = (jax.jit(jax.vmap(lambda key, p=pair: loss(key, p[:2], p[2])))(keys) for pair in pairs)
    error = jnp.sqrt((found.var() + expected.var()) / 4000)
    assert jnp.abs(found.mean() - expected.mean()) < 5.0 * error


def test_a_draw_depends_on_seed_datum_and_particle_alone():
    def z_of(x, particles):
        programs_ = programs_of(model, lambda x, scale: guide(0.0 * x, scale), THETA, PHI, x, SCALE)
        return draw(programs_, particles, data_axes=(0, None)).latents["z"]

    z = z_of(X, 6)
    assert z.shape == (6, 4)
    assert len(set(z.ravel().tolist())) == 24
    chex.assert_trees_all_close(z_of(X[:2], jnp.array([3, 5])), z[jnp.array([3, 5]), :2])


@pytest.mark.floors
@pytest.mark.parametrize(
    "options", [{"defensive": 0.3}, {"gradient": "dreg"}, {"insomnia": 0.0}, {"phi_steps": 2}], ids=str
)
def test_options_go_with_data_axes(options):
    options = {"num_particles": 4, "data_axes": (0, None)} | options
    compiled = rws_jax.make_step(model, guide, **options)
    one_by_one = rws_jax.make_step(model, guide, vectorize_particles=False, **options)
    state = compiled.init(jax.random.key(0), X, SCALE)
    chex.assert_trees_all_close(
        compiled.step(state, X, SCALE)[0]._replace(rng_key=None),
        one_by_one.step(state, X, SCALE)[0]._replace(rng_key=None),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


def test_the_posterior_of_each_datum_is_found():
    """Conjugate: E[z | x] = (0.3 s^2 + x) / (1 + s^2), of one observation with standard deviation s."""

    def linear_guide(x, scale):
        a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
        numpyro.sample("z", dist.Normal(a * x + b, scale / jnp.sqrt(1.0 + scale**2)))

    rws = rws_jax.make_step(
        model, linear_guide, data_axes=(0, None), num_particles=20,
        theta_optimizer=optax.set_to_zero(), phi_optimizer=optax.adam(optax.linear_schedule(0.05, 0.0, 1000)),
    )  # fmt: skip
    state = rws.init(jax.random.key(0), X, SCALE)
    state, _ = jax.lax.scan(lambda state, _: rws.step(state, X, SCALE), state, length=1000)
    expected = {"a": 1.0 / (1.0 + SCALE**2), "b": 0.3 * SCALE**2 / (1.0 + SCALE**2)}
    chex.assert_trees_all_close(dict(state.phi), expected, atol=0.03)


ERRORS = {
    "no number": (TypeError, "x", "option 'data_axes' has the wrong type", "data_axes=0"),
    "too few": (ValueError, (0,), "does not fit the arguments", "each of the 2 positional arguments"),
    "no such axis": (ValueError, 0, "asks for axis 0 of argument 1", "data_axes=(0, None)"),
    "nothing mapped": (ValueError, (None, None), "finds no number of data", "no argument with an axis of data"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_axes_that_do_not_fit_are_told(name):
    kind, axes, message, word = ERRORS[name]
    with pytest.raises(kind, match=message) as error:
        rws_jax.wake_phi_loss(THETA, PHI, *seeded(model, guide), X, SCALE, data_axes=axes)
    check(error, kind, word)
    with pytest.raises(kind, match=message):
        rws_jax.make_step(model, guide, data_axes=axes).init(jax.random.key(0), X, SCALE)


def test_arguments_agree_on_the_number_of_data():
    with pytest.raises(ValueError, match="finds no number of data") as error:
        rws_jax.wake_phi_loss(THETA, PHI, *seeded(model, guide), X, X[:3], data_axes=0)
    check(error, ValueError, "4 in argument 0, 3 in argument 1")
