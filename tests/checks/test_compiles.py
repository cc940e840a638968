"""Programs that cannot be compiled: the message names the argument or the site, and shows the user's line."""

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
from tests.checks.test_errors import check

X = jnp.array([0.5, -1.0, 2.0])
pytestmark = pytest.mark.usefixtures("allow_key_reuse")


def model(x, n):
    """Discrete latents in a plate, on which nothing branches."""
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, n):
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("m", 0.0) + 0.0 * x))


def if_greater(x, n):
    if n > 3:
        model(2 * x, n)
    else:
        model(x, n)


def of_maximum(x, n):
    numpyro.sample("w", dist.Normal(jnp.zeros(int(np.max(n)) + 1), 1.0).to_event(1), obs=jnp.zeros(6))
    model(x, n)


def of_size(x, n):
    model(x + jnp.zeros((n, 1)).sum(), n)


def loop(x, n):
    for _ in range(n):
        x = x / 2
    model(x, n)


def sliced(x, n):
    model(x + x[:n].sum(), n)


def as_array(x, n):
    model(x + np.asarray(n).mean(), n)


def indexed(x, n):
    model(x + x[x > 0].sum(), n)


def plate_of_size(x, n):
    with numpyro.plate("others", n):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.zeros(5))
    model(x, n)


def by_config(x, n):
    model(x if n["depth"] > 2 else 2 * x, n)


READERS = {
    "if": (if_greater, 5, "argument 'n'", "'if n > 3:'"),
    "maximum": (of_maximum, jnp.array([0, 5, 1]), "argument 'n'", "int(np.max(n))"),
    "size": (of_size, 5, "argument 'n'", "jnp.zeros((n, 1))"),
    "loop": (loop, 5, "argument 'n'", "'for _ in range(n):'"),
    "slice": (sliced, 2, "argument 'n'", "x[:n]"),
    "numpy": (as_array, jnp.arange(3.0), "argument 'n'", "np.asarray(n)"),
    "boolean index": (indexed, 5, "argument 'x'", "x[x > 0]"),
    "plate": (plate_of_size, 5, "argument 'n'", "numpyro.plate"),
    "in a tree": (by_config, {"width": 3, "depth": 2}, "argument 'n'['depth']", 'n["depth"] > 2'),
}


@pytest.mark.parametrize(
    "name", [n if n in ("if", "slice") else pytest.param(n, marks=pytest.mark.slow) for n in READERS]
)
def test_the_argument_is_named_that_python_has_to_know(name):
    program, n, argument, line = READERS[name]
    with pytest.raises(TypeError, match="cannot be compiled: Python has to know") as error:
        rws_jax.make_step(program, guide).init(jax.random.key(0), X, n)
    check(error, TypeError, f"the value of {argument}", line, program.__name__, "functools.partial(model, ...)")
    assert "z" not in str(error.value).split("\n")[0].split("'")[1::2]
    assert error.value.__cause__ is not None
    bound = [partial(program, n=n), partial(guide, n=n)]
    if name == "if":
        rws_jax.make_step(*bound).init(jax.random.key(0), X)


def test_a_step_alone_names_the_argument():
    """Of which `init` had another."""
    rws = rws_jax.make_step(if_greater, guide)
    state = rws_jax.make_step(model, guide).init(jax.random.key(0), X, 5)
    with pytest.raises(TypeError, match="Python has to know the value of argument 'n'") as error:
        rws.step(state, X, 5)
    check(error, TypeError, "'if n > 3:'")
    assert error.value.__cause__ is not None
    with pytest.raises(TypeError, match="cannot be compiled"):
        rws_jax.fit(rws.step, state, 3, X, 5, progress_bar=False)
    with pytest.raises(TypeError, match="unsupported operand"):  # an error of the user's own is passed on as it is
        rws_jax.make_step(model, lambda x, n: guide(x, n) + None).step(state, X, 5)


def of_one(program):
    """For one datum, with a latent that nothing branches on."""

    def one(x, n):
        z = numpyro.sample("z", dist.Bernoulli(0.5 if program == "model" else jax.nn.sigmoid(numpyro.param("m", 0.0))))
        if program == "model":
            numpyro.sample("x", dist.Normal(z, 1.0 if n > 3 else 2.0), obs=x)

    return one


def test_losses_name_the_argument():
    """By the caller's own name for it where the caller compiles."""
    seeded = seed(of_one("model"), jax.random.key(0)), seed(of_one("guide"), jax.random.key(1))
    with pytest.raises(TypeError, match="Python has to know the value of argument 'n'") as error:
        rws_jax.wake_phi_loss({}, {"m": 0.0}, *seeded, X, jnp.array([1, 5, 2]), data_axes=0)
    check(error, TypeError, "1.0 if n > 3 else 2.0", "handlers.mask for what differs between data")
    loss = jax.jit(lambda x, length: rws_jax.wake_phi_loss({}, {"m": 0.0}, *seeded, x, length))
    with pytest.raises(TypeError, match="cannot be compiled") as error:
        loss(0.5, 4)
    check(error, TypeError, "which depends on length", "in one)", "functools.partial")
    assert error.value.__cause__ is not None
    svi = SVI(of_one("model"), of_one("guide"), optax.adam(0.1), loss=rws_jax.ReweightedWakeSleep())
    with pytest.raises(TypeError, match="cannot be compiled") as error:
        jax.jit(svi.update)(svi.init(jax.random.key(0), 0.5, 4), 0.5, 4)
    check(error, TypeError, "args[1]", "1.0 if n > 3 else 2.0")


def test_a_site_is_named_that_python_branches_on():
    def branching(x, n):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0 if z > 0 else 2.0), obs=x)

    def its_guide(x, n):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    with pytest.raises(TypeError, match="Python branches on the value of site 'z'") as error:
        rws_jax.make_step(branching, its_guide).init(jax.random.key(0), 0.5, 5)
    check(error, TypeError, "1.0 if z > 0 else 2.0", "cond")
    seeded = seed(branching, jax.random.key(0)), seed(its_guide, jax.random.key(1))
    with pytest.raises(TypeError, match="Python branches on the value of site 'z'") as error:
        rws_jax.wake_phi_loss({}, {"m": 0.0}, *seeded, 0.5, 5)
    check(error, TypeError, "1.0 if z > 0 else 2.0")

    def both(x, n):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0 if n > 3 and z > 0 else 2.0), obs=x)

    with pytest.raises(TypeError, match="the value of argument 'n', and of site 'z'"):
        rws_jax.make_step(both, its_guide).init(jax.random.key(0), 0.5, 5)


def test_python_cannot_branch_on_a_plate():
    def summing(x, n):
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        if z.sum() > 1:
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.3)

    with pytest.raises(ValueError, match="branching site 'z' of the guide is in plate 'data'") as error:
        rws_jax.make_step(summing, guide).init(jax.random.key(0), X, 5)
    assert error.value.__cause__ is not None


# Annotated in one of the two programs


def one_sided(role, annotated):
    """Python branches in both programs on a site that one of them annotates."""

    def program(x):
        infer = {"branching": True} if role == annotated else {}
        p = 0.3 if role == "model" else jax.nn.sigmoid(numpyro.param("m", 0.0))
        if numpyro.sample("z", dist.Bernoulli(p), infer=infer):
            numpyro.sample("a", dist.Normal(0.0, 1.0))
        if role == "model":
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return program


@pytest.mark.filterwarnings("ignore:the guide .* reads no data")
@pytest.mark.slow
@pytest.mark.parametrize("insomnia", [0.0, 1.0])
@pytest.mark.parametrize("annotated", ["model", "guide"])
def test_an_annotation_in_one_of_the_programs_will_do(annotated, insomnia):
    """Compiled or not, with `init` or without, in steps and in losses; the numbers are those of both annotated."""
    losses = []
    for which in (annotated, "both"):
        programs = [one_sided(role, role if which == "both" else which) for role in ("model", "guide")]
        rws = rws_jax.make_step(*programs, insomnia=insomnia, num_particles=20, compile_after=0)
        state = rws.init(jax.random.key(0), 0.5)
        fresh = rws_jax.make_step(*programs, insomnia=insomnia, num_particles=20, compile_after=0)
        losses += [made.step(state, 0.5)[1].phi_loss for made in (rws, fresh)]
        seeded = [seed(program, jax.random.key(i)) for i, program in enumerate(programs)]
        loss = rws_jax.wake_phi_loss if insomnia else rws_jax.sleep_phi_loss
        losses.append(loss({}, {"m": jnp.array(0.0)}, *seeded, 0.5, num_particles=40))
    assert jnp.allclose(jnp.array(losses[:3]), jnp.array(losses[3:]), rtol=1e-5)


def test_a_guide_need_not_annotate_what_the_model_does():
    """Not even where it branches itself."""
    programs = [one_sided(role, "model") for role in ("model", "guide")]
    seeded = [seed(program, jax.random.key(i)) for i, program in enumerate(programs)]
    loss = rws_jax.wake_phi_loss({}, {"m": jnp.array(0.0)}, *seeded, 0.5, num_particles=40)
    seeded = [seed(one_sided(role, role), jax.random.key(i)) for i, role in enumerate(("model", "guide"))]
    both = rws_jax.wake_phi_loss({}, {"m": jnp.array(0.0)}, *seeded, 0.5, num_particles=40)
    assert jnp.allclose(loss, both)
