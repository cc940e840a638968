"""Levels of plates: what they are, against levels by hand, and plates whose elements cannot have particles."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed
from numpyro.infer.autoguide import AutoMultivariateNormal

import rws_jax
from rws_jax.estimators.nested import NestedParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.data import Data
from rws_jax.programs.program import Index
from tests.estimators.nested_cases import CASES, PARAMS, chain
from tests.estimators.nested_cases import schools_guide as guide
from tests.estimators.nested_cases import schools_model as model
from tests.models import rows
from tests.oracles import programs_of

pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")
X = jnp.array([0.5, -0.8, 1.4])
NORMAL = dist.Normal(0.0, 1.0)


@pytest.mark.parametrize("name", CASES)
def test_levels_are_those_by_hand(name):
    case = CASES[name]
    programs_ = programs_of(case.model, case.guide, *PARAMS[name], case.x)
    particle = NestedParticle(WakeParticle(), 2, common=True)
    levels = particle.levels(Data(case.data_axes).take(programs_, None if case.data_axes is None else 0), Index(0))
    # Levels of one depth are in no order of their own.
    order = [next(n for n, level in enumerate(levels.all) if set(of.latents) <= level.sites) for of in case.levels]
    assert sorted(order) == list(range(len(case.levels)))
    assert levels.units.sizes == tuple((dim, 2) for dim in case.units)
    assert levels.num_dims == case.num_dims
    for of, number in zip(case.levels, order, strict=True):
        level = levels.all[number]
        assert level.sites == {*of.latents, *of.observed}
        assert level.parent == (None if of.parent is None else order[of.parent])
        assert level.summed == of.own
        assert tuple(dim for dim, _ in level.units.sizes) == of.plates
        assert level.chain == tuple(order[n] for n in chain(case.levels, case.levels.index(of)))


def in_plate(*sites, name="schools", size=3, dim=None):
    with numpyro.plate(name, size, dim=dim):
        return [numpyro.sample(*site) for site in sites]


def only_units(x):
    in_plate(("z", NORMAL), ("x", NORMAL, x))


def only_units_guide(x):
    in_plate(("z", dist.Normal(numpyro.param("a", 0.5), 1.0)))


def no_plate(x):
    g = numpyro.sample("g", NORMAL)
    in_plate(("x", dist.Normal(g, 1.0), x))


def no_plate_guide(x):
    numpyro.sample("g", dist.Normal(numpyro.param("a", 0.5), 1.0))


def crossed(x):
    (u,), (v,) = in_plate(("u", NORMAL), name="rows", size=2, dim=-2), in_plate(("v", NORMAL), name="columns")
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3):
        numpyro.sample("x", dist.Normal(u + v, 1.0), obs=jnp.stack([x, x]))


def crossed_guide(x):
    location = numpyro.param("a", 0.5)
    in_plate(("u", dist.Normal(location, 1.0)), name="rows", size=2, dim=-2)
    in_plate(("v", NORMAL), name="columns")


def outside_guide(x):
    no_plate_guide(x)
    numpyro.sample("z", NORMAL.expand([3]))


def other_plate_guide(x):
    no_plate_guide(x)
    in_plate(("z", NORMAL), name="pupils")


def total_model(x):
    (z, _), _ = in_plate(("z", NORMAL), ("x", NORMAL, x)), numpyro.sample("g", NORMAL)
    numpyro.sample("total", dist.Normal(z.sum(), 1.0), obs=0.3)


def factor_model(x):
    numpyro.sample("g", NORMAL)
    z, _ = in_plate(("z", NORMAL), ("x", NORMAL, x))
    numpyro.factor("penalty", -(z.sum() ** 2))


def backward_guide(x):
    (z,) = in_plate(("z", NORMAL))
    numpyro.sample("g", dist.Normal(numpyro.param("a", 0.5) + z.mean(), 1.0))


def sibling_model(x):
    model(x)
    in_plate(("w", NORMAL), name="shops", size=2)


def reading_sibling_guide(x):
    no_plate_guide(x)
    (z,) = in_plate(("z", NORMAL))
    in_plate(("w", dist.Normal(z.sum(), 1.0)), name="shops", size=2)


def by_index_model(x):
    """Data in a plate of their own, each of which reads the latent of its group."""
    numpyro.sample("g", NORMAL)
    (z,) = in_plate(("z", NORMAL))
    in_plate(("x", dist.Normal(z[jnp.array([0, 0, 1, 1, 2, 2])], 1.0), jnp.zeros(6)), name="pupils", size=6)


def upward_model(x):
    """Data of a school that depend on latents of its students."""
    g = numpyro.sample("g", NORMAL)
    with numpyro.plate("schools", 2, dim=-2):
        s = numpyro.sample("s", dist.Normal(g, 1.0))
        with numpyro.plate("students", 3, dim=-1):
            z = numpyro.sample("z", dist.Normal(s, 1.0))
        numpyro.sample("ys", dist.Normal(z.mean(-1, keepdims=True), 1.0), obs=jnp.zeros((2, 1)))


def upward_guide(x):
    no_plate_guide(x)
    with numpyro.plate("schools", 2, dim=-2):
        numpyro.sample("s", NORMAL)
        with numpyro.plate("students", 3, dim=-1):
            numpyro.sample("z", NORMAL)


NO_PLATE = "option 'num_local_particles' finds no inner plate"
DEPENDS = "depends on latents in plate 'schools', and is outside of it"
REFUSED = {
    "only units": (only_units, only_units_guide, [NO_PLATE, "all latents in plate 'schools', which all sites are in"]),
    "no plate of latents": (no_plate, no_plate_guide, [NO_PLATE, "no latent that the guide draws in a plate"]),
    "crossed": (crossed, crossed_guide, ["finds crossed plates at site 'x'", "plate 'columns'", "plate 'rows'"]),
    "outside of the plate": (model, outside_guide, ["plates differ at latent site 'z'", "no plate in the guide"]),
    "in another plate": (model, other_plate_guide, ["plates differ at latent site 'z'", "pupils(size=3, dim=-1)"]),
    "a sum of all elements": (total_model, guide, [f"site 'total' of the model {DEPENDS}"]),
    "a factor of all elements": (factor_model, guide, [f"site 'penalty' of the model {DEPENDS}"]),
    "global from locals": (model, backward_guide, [f"site 'g' of the guide {DEPENDS}"]),
    "sibling": (sibling_model, reading_sibling_guide, [f"site 'w' of the guide {DEPENDS}"]),
    "by an index": (by_index_model, guide, [f"site 'x' of the model {DEPENDS}"]),
    "school from students": (
        upward_model,
        upward_guide,
        ["site 'ys' of the model depends on latents in plate 'students', and is outside of it"],
    ),
}


def refusal(call):
    with pytest.raises(ValueError, match="expected:") as error:
        call()
    return str(error.value)


@pytest.mark.parametrize("name", rows(REFUSED, fast=["only units", "crossed", "sibling"]))
def test_plates_that_cannot_have_local_particles_are_refused_by_init_and_losses(name):
    bad_model, bad_guide, words = REFUSED[name]
    options = {"num_particles": 2, "num_local_particles": 2}
    rws = rws_jax.make_step(bad_model, bad_guide, **options)
    theta, phi = {"m": jnp.array(0.2)}, {"a": jnp.array(0.5), "b": jnp.array(0.3)}
    programs_ = seed(bad_model, 0), seed(bad_guide, 1)
    by_init = refusal(lambda: rws.init(jax.random.key(0), X))
    by_loss = refusal(jax.jit(lambda: rws_jax.wake_phi_loss(theta, phi, *programs_, X, **options)))
    for words_of in (by_init, by_loss):
        assert all(word in words_of for word in words), words_of


@pytest.mark.parametrize("which", ["model", "guide"])
def test_elements_of_inner_plates_that_depend_on_one_another_are_refused_by_init(which):
    def of_model(x):
        numpyro.sample("g", NORMAL)
        with numpyro.plate("schools", 3):
            z = numpyro.sample("z", NORMAL)
            numpyro.sample("x", dist.Normal(jnp.cumsum(z) if which == "model" else z, 1.0), obs=x)

    def of_guide(x):
        no_plate_guide(x)
        with numpyro.plate("schools", 3):
            u = numpyro.sample("u", NORMAL, infer={"is_auxiliary": True})
            numpyro.sample("z", dist.Normal(u.mean() if which == "guide" else u, 1.0))

    site = {"model": "'x' of the model", "guide": "'z' of the guide"}[which]
    init = lambda **options: rws_jax.make_step(of_model, of_guide, **options).init(jax.random.key(0), X)
    with pytest.warns(UserWarning, match="auxiliary"):
        words = refusal(lambda: init(num_local_particles=2))
    with pytest.warns(UserWarning, match="auxiliary"):
        init()  # without local particles they may
    assert f"elements of a plate depend on one another at site {site}" in words


def test_a_guide_that_draws_all_latents_together_draws_none_in_a_plate():
    rws = rws_jax.make_step(model, AutoMultivariateNormal(model), num_local_particles=2)
    with pytest.raises(ValueError, match="no latent that the guide draws in a plate"):
        rws.init(jax.random.key(0), jnp.zeros(3))
