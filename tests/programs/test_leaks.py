"""No real data in sleep, whatever is known when it is checked: in dreams, in the guide, under every transformation."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import seed
from numpyro.infer import SVI

import rws_jax
from tests.checks.test_errors import check
from tests.programs.test_stand_in import mean_gradient

X = jnp.array([0.5, -1.0, 2.0])
PHI = {"a": 0.2}


def model_of(observes=lambda y: y, reads=lambda y: 0.0):
    def model(y, observations=None):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(reads(y), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=observes(y))

    return model


def guide(y, observations=None):
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Normal(numpyro.param("a", 0.2) * y, 1.0))


def show_real_data(sim, y):
    return (y,), {"observations": sim}


# Everything that asks for sleep, with the data known or not.
WAYS = {
    "loss": lambda loss, init, _: loss(PHI, X),
    "gradient": lambda loss, init, _: jax.grad(loss)(PHI, X),
    "jitted loss": lambda loss, init, _: jax.eval_shape(loss, PHI, X),
    "jitted loss of known data": lambda loss, init, _: jax.eval_shape(lambda phi: loss(phi, X), PHI),
    "init": lambda loss, init, _: init(jax.random.key(0), X),
    "jitted init": lambda loss, init, _: jax.eval_shape(init, jax.random.key(0), X),
    "init of several seeds": lambda loss, init, _: jax.vmap(lambda key: init(key, X))(
        jax.random.split(jax.random.key(0), 2)
    ),
    "init of several data": lambda loss, init, _: jax.vmap(lambda x: init(jax.random.key(0), x))(jnp.stack([X, X])),
    "SVI": lambda loss, init, svi: svi.run(jax.random.key(0), 2, X, progress_bar=False),
    "jitted update of SVI": lambda loss, init, svi: jax.eval_shape(svi.update, svi.init(jax.random.key(0), X), X),
}
DATA_ARE_UNKNOWN = "jitted loss", "jitted init", "init of several data", "jitted update of SVI"


def table(cases, fast):
    """All ways of all cases, those that are not `fast` in the slow tests."""
    marks = lambda case, way: () if fast(case, way) else pytest.mark.slow
    pairs = [(case, way) for case in cases for way in WAYS]
    return [pytest.param(case, way, id=f"{case}-{way}", marks=marks(case, way)) for case, way in pairs]


def attempt(way, model, guide, options):
    loss = lambda phi, x: rws_jax.sleep_phi_loss({}, phi, seed(model, 0), seed(guide, 1), x, **options)
    init = rws_jax.make_step(model, guide, insomnia=0.5, **options).init
    svi = SVI(model, guide, optax.adam(0.1), loss=rws_jax.ReweightedWakeSleep(insomnia=0.5, **options))
    return WAYS[way](loss, init, svi)


LEAKS = {
    "the guide reads real data": (model_of(), guide, {"simulated_data_to_args": show_real_data}, "reads real data"),
    "the guide reads what the data are computed from": (model_of(lambda y: 2.0 * y), guide, {}, "reads real data"),
    "dreams read data": (model_of(reads=lambda y: y.mean()), guide, {}, "dreams depend on the real data"),
    "dreams read what the data are computed from": (
        model_of(lambda y: y[::-1] - 1.0, lambda y: y),
        guide,
        {},
        "dreams depend on the real data",
    ),
}


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize(
    ("leak", "way"),
    table(LEAKS, lambda leak, way: leak == "the guide reads real data" or way in ("jitted loss", "init")),
)
def test_real_data_in_sleep_are_refused_under_every_transformation(leak, way):
    model, guide, options, words = LEAKS[leak]
    with pytest.raises(ValueError, match=words) as error:
        attempt(way, model, guide, options)
    check(error, ValueError, "observed site 'x'")


HARMLESS = {
    "a length": (model_of(reads=lambda y: jnp.zeros_like(y) + len(y)), guide, {}),
    "a covariate": (lambda c, y: model_of(reads=lambda _: c)(y), lambda c, y: guide(c + y), {}),
    "the guide's covariate": (lambda c, y: model_of()(y), lambda c, y: guide(c * y), {}),
}
COMES_TO_NOTHING = model_of(reads=lambda y: 0.0 * y.mean())


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize(("case", "way"), table(HARMLESS, lambda _, way: way == "jitted init"))
def test_shapes_and_covariates_are_no_data(case, way):
    model, guide, options = HARMLESS[case]
    with_covariate = lambda program: program if case == "a length" else lambda x: program(jnp.ones(3), x)
    attempt(way, with_covariate(model), with_covariate(guide), options)


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize(("_", "way"), table([""], lambda _, way: way in ("jitted loss", "jitted loss of known data")))
def test_arithmetic_that_comes_to_nothing_is_let_through_where_data_are_known(_, way):
    if way in DATA_ARE_UNKNOWN:
        with pytest.raises(ValueError, match="dreams depend on the real data") as error:
            attempt(way, COMES_TO_NOTHING, guide, {})
        check(error, ValueError, "argument of its own")
    else:
        attempt(way, COMES_TO_NOTHING, guide, {})


def test_dreams_go_where_the_data_are_beside_observations():
    """The gradient on dreams is (2 a - 1) Var z summed over data, -1.8 at a = 0.2; on real data it is another."""
    mean, error = mean_gradient(model_of(), guide, PHI, jnp.full(3, 5.0), num_particles=30)
    assert jnp.abs(mean[0] + 1.8) < 5 * error[0] < 0.5


def scan_model(x):
    def step(carry, x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z + carry, 1.0), obs=x)
        return carry, None

    scan(step, x.mean(), x)


def cond_model(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    one = lambda loc: numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)
    numpyro.contrib.control_flow.cond(z > 0, one, one, z + x)


def scan_guide(x):
    scan(lambda carry, x: (carry, numpyro.sample("z", dist.Normal(x, 1.0))), 0.0, x)


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize(
    ("model", "guide", "x"),
    [
        pytest.param(scan_model, scan_guide, X, id="scan"),
        pytest.param(cond_model, lambda x: numpyro.sample("z", dist.Normal(x, 1.0)), jnp.array(0.3), id="cond"),
    ],
)
def test_what_control_flow_carries_is_followed(model, guide, x):
    loss = lambda x: rws_jax.sleep_phi_loss({}, {}, seed(model, 0), seed(guide, 1), x)
    for sleep in (loss, jax.jit(loss)):
        with pytest.raises(ValueError, match="dreams depend on the real data"):
            sleep(x)


@pytest.mark.usefixtures("allow_key_reuse")
def test_programs_of_one_datum_are_followed():
    model = lambda y: numpyro.sample("x", dist.Normal(numpyro.sample("z", dist.Normal(y, 1.0)), 1.0), obs=y)
    guide = lambda y: numpyro.sample("z", dist.Normal(y, 1.0))
    loss = lambda y: rws_jax.sleep_phi_loss({}, {}, seed(model, 0), seed(guide, 1), y, data_axes=0)
    for sleep in (loss, jax.jit(loss)):
        with pytest.raises(ValueError, match="dreams depend on the real data"):
            sleep(X)


def test_which_data_are_masked_is_read_from_no_data_that_are_dreamt():
    """A length that is observed, and dreamt, as the argument that masks others; or the sign of the data themselves."""

    def by_length(n, x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("n", dist.Binomial(3, 0.5), obs=n)
        with numpyro.plate("data", 3), numpyro.handlers.mask(mask=jnp.arange(3) < n):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def by_sign(n, x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 3), numpyro.handlers.mask(mask=x > 0):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = lambda n, x: numpyro.sample("z", dist.Normal(n + x.sum(), 1.0))
    for model, name in ((by_length, "n"), (by_sign, "x")):
        loss = lambda n, x, model=model: rws_jax.sleep_phi_loss({}, {}, seed(model, 0), seed(guide, 1), n, x)
        for sleep in (loss, jax.jit(loss)):
            with pytest.raises(ValueError, match=f"dreams depend on the real data of observed site '{name}'"):
                sleep(2, X)


def test_programs_that_branch_in_python_are_followed_by_values():
    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.5), infer={"branching": True})
        numpyro.sample("x", dist.Normal(y if z else 1.0, 1.0), obs=y)

    def guide(y):
        numpyro.sample("z", dist.Bernoulli(logits=y), infer={"branching": True})

    with pytest.raises(ValueError, match="dreams depend on the real data"):
        rws_jax.make_step(model, guide, insomnia=0.5, data_axes=0).init(jax.random.key(3), X)


def test_sleep_is_traced_once_more_at_most_for_it():
    """One dream, for a loss; nothing for a step."""
    traced = []

    def counted(y, observations=None):
        traced.append(1)
        model_of()(y)

    jax.jit(lambda y: rws_jax.sleep_phi_loss({}, PHI, seed(counted, 0), seed(guide, 1), y, num_particles=7))(X)
    assert len(traced) == 2
    rws = rws_jax.make_step(counted, guide, insomnia=0.0)
    state = rws.init(jax.random.key(0), X)
    traced.clear()
    rws.step(state, X)
    assert len(traced) == 1
