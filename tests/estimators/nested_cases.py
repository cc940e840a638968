"""Programs with inner plates, each with its tree of levels by hand, and the losses of nested particles by hand.

The oracle takes log densities from NumPyro's own traces at the draws of the package. Which site belongs to which level,
and what is summed where, is written here for each case.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale, scope, substitute, trace

from rws_jax.estimators.nested import NestedParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.data import Data
from rws_jax.execution.vectorized import Vectorized
from tests.oracles import programs_of


class Of(NamedTuple):
    """A level by hand."""

    parent: int | None
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    own: tuple[int, ...]  # dims that it has and its parent has not
    plates: tuple[int, ...] = ()  # all its dims, those of units among them


class Case(NamedTuple):
    model: Any
    guide: Any
    x: Any
    levels: list[Of]
    num_dims: int
    units: tuple[int, ...] = ()  # dims
    data_axes: int | None = None
    scale: float = 1.0
    scanned: tuple[str, ...] = ()  # sites in the body of a scan, whose log densities have an axis of steps


m = lambda: numpyro.param("m", 0.3)
a = lambda: numpyro.param("a", 0.5)
b = lambda: numpyro.param("b", 0.4)


def schools_model(x):
    g = numpyro.sample("g", dist.Normal(m(), 1.0))
    numpyro.sample("y", dist.Normal(g, 0.8), obs=0.6)
    with numpyro.plate("schools", x.shape[-1]):
        z = numpyro.sample("z", dist.Normal(g, 0.7))
        numpyro.sample("x", dist.Normal(z + 0.3 * m(), 0.5), obs=x)


def schools_guide(x):
    g = numpyro.sample("g", dist.Normal(a(), 0.9))
    with numpyro.plate("schools", x.shape[-1]):
        numpyro.sample("z", dist.Normal(b() * g + 0.5 * x, 0.8))


def mean_field_guide(x):
    numpyro.sample("g", dist.Normal(a(), 0.9))
    with numpyro.plate("schools", x.shape[-1]):
        numpyro.sample("z", dist.Normal(b() + 0.5 * x, 0.8))


SCHOOLS_X = jnp.array([0.5, -0.8, 1.4])
SCHOOLS = [Of(None, ("g",), ("y",), ()), Of(0, ("z",), ("x",), (-1,), (-1,))]


def districts_model(x):
    """Three levels, with data at each; two observations of a student, in a plate without latents."""
    g = numpyro.sample("g", dist.Normal(m(), 1.0))
    numpyro.sample("y", dist.Normal(g, 0.8), obs=0.6)
    with numpyro.plate("schools", 2, dim=-3):
        s = numpyro.sample("s", dist.Normal(g, 0.7))
        numpyro.sample("ys", dist.Normal(s, 0.9), obs=jnp.array([0.4, -0.2]).reshape(2, 1, 1))
        with numpyro.plate("students", 3, dim=-2):
            z = numpyro.sample("z", dist.Normal(s + 0.2 * g, 0.6))
            with numpyro.plate("repeats", 2, dim=-1):
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def districts_guide(x):
    g = numpyro.sample("g", dist.Normal(a(), 0.9))
    with numpyro.plate("schools", 2, dim=-3):
        s = numpyro.sample("s", dist.Normal(b() * g, 0.8))
        with numpyro.plate("students", 3, dim=-2):
            numpyro.sample("z", dist.Normal(b() * s + 0.5 * x.mean(-1, keepdims=True), 0.7))


DISTRICTS_X = jnp.linspace(-1.0, 1.5, 12).reshape(2, 3, 2)
DISTRICTS = [
    Of(None, ("g",), ("y",), ()),
    Of(0, ("s",), ("ys",), (-3,), (-3,)),
    Of(1, ("z",), ("x",), (-2,), (-3, -2)),
]


def siblings_model(x):
    g = numpyro.sample("g", dist.Normal(m(), 1.0))
    with numpyro.plate("schools", 3):
        z = numpyro.sample("z", dist.Normal(g, 0.7))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
    with numpyro.plate("shops", 2):
        u = numpyro.sample("u", dist.Exponential(jnp.exp(0.3 * g)))
        numpyro.sample("v", dist.Poisson(u), obs=jnp.array([0.0, 2.0]))


def siblings_guide(x):
    with numpyro.plate("shops", 2):  # in another order than the model
        numpyro.sample("u", dist.Gamma(1.5, jnp.exp(a())))
    g = numpyro.sample("g", dist.Normal(a(), 0.9))
    with numpyro.plate("schools", 3):
        numpyro.sample("z", dist.Normal(b() * g + 0.5 * x, 0.8))


SIBLINGS = [Of(None, ("g",), (), ()), Of(0, ("z",), ("x",), (-1,), (-1,)), Of(0, ("u",), ("v",), (-1,), (-1,))]


def units_model(dim):
    inner = -3 - dim

    def model(x):
        with numpyro.plate("data", 2, dim=dim):
            g = numpyro.sample("g", dist.Normal(m(), 1.0))
            with numpyro.plate("schools", 3, dim=inner):
                z = numpyro.sample("z", dist.Normal(g, 0.7))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return model


def units_guide(dim):
    inner = -3 - dim

    def guide(x):
        with numpyro.plate("data", 2, dim=dim):
            g = numpyro.sample("g", dist.Normal(a(), 0.9))
            with numpyro.plate("schools", 3, dim=inner):
                numpyro.sample("z", dist.Normal(b() * g + 0.5 * x, 0.8))

    return guide


UNITS_X = jnp.array([[0.5, -0.8, 1.4], [0.1, 0.9, -0.3]])


def units_case(dim):
    inner = -3 - dim
    levels = [Of(None, ("g",), (), (), (dim,)), Of(0, ("z",), ("x",), (inner,), tuple(sorted((dim, inner))))]
    x = UNITS_X if dim == -2 else UNITS_X.T
    return Case(units_model(dim), units_guide(dim), x, levels, 2, (dim,))


def minibatch_case():
    """The plate of units is subsampled; the inner one is not."""

    def of(program):
        def run(x):
            with numpyro.plate("data", 6, subsample_size=2, dim=-2):
                program(x)

        return run

    def model(x):
        g = numpyro.sample("g", dist.Normal(m(), 1.0))
        with numpyro.plate("schools", 3, dim=-1):
            z = numpyro.sample("z", dist.Normal(g, 0.7))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        g = numpyro.sample("g", dist.Normal(a(), 0.9))
        with numpyro.plate("schools", 3, dim=-1):
            numpyro.sample("z", dist.Normal(b() * g + 0.5 * x, 0.8))

    levels = [Of(None, ("g",), (), (), (-2,)), Of(0, ("z",), ("x",), (-1,), (-2, -1))]
    return Case(of(model), of(guide), UNITS_X, levels, 2, (-2,), scale=3.0)


def scan_model(x):
    """A local series for each of three elements, and a global one for all."""
    g = numpyro.sample("g", dist.Normal(m(), 1.0))

    def step(carry, x):
        h, z = carry
        h = numpyro.sample("h", dist.Normal(0.5 * h + g, 0.7))
        numpyro.sample("y", dist.Normal(h, 0.9), obs=0.3)
        with numpyro.plate("schools", 3):
            z = numpyro.sample("z", dist.Normal(0.6 * z + 0.3 * h, 0.7))
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return (h, z), None

    scan(step, (0.0, jnp.zeros(3)), x)


def scan_guide(x):
    g, slope = numpyro.sample("g", dist.Normal(a(), 0.9)), b()

    def step(carry, x):
        h, z = carry
        h = numpyro.sample("h", dist.Normal(0.4 * h + g, 0.8))
        with numpyro.plate("schools", 3):
            z = numpyro.sample("z", dist.Normal(slope * z + 0.5 * x, 0.8))
        return (h, z), None

    scan(step, (0.0, jnp.zeros(3)), x)


SCAN_X = jnp.array([[0.5, -0.8, 1.4], [0.1, 0.9, -0.3]])


def masked_model(x):
    g = numpyro.sample("g", dist.Normal(m(), 1.0))
    with numpyro.plate("schools", 3), mask(mask=jnp.array([True, False, True])):
        z = numpyro.sample("z", dist.Normal(g, 0.7))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def masked_guide(x):
    g = numpyro.sample("g", dist.Normal(a(), 0.9))
    with numpyro.plate("schools", 3), mask(mask=jnp.array([True, False, True])):
        numpyro.sample("z", dist.Normal(b() * g + 0.5 * x, 0.8))


def scaled_model(x):
    g = numpyro.sample("g", dist.Normal(m(), 1.0))
    with numpyro.plate("schools", 3):
        z = numpyro.sample("z", dist.Normal(g, 0.7))
        with scale(scale=0.6):
            numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def auxiliary_guide(x):
    """A draw of the guide's own in the inner plate, and one outside of it."""
    e = numpyro.sample("e", dist.Normal(a(), 0.5), infer={"is_auxiliary": True})
    g = numpyro.sample("g", dist.Normal(e, 0.9))
    with numpyro.plate("schools", 3):
        u = numpyro.sample("u", dist.Normal(b() * x, 0.5), infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Normal(b() * g + u, 0.8))


def vectors_model(x):
    """Locals are vectors of events, and the plate is on the left of another one, of sites alone."""
    g = numpyro.sample("g", dist.Normal(m(), 1.0).expand([2]).to_event(1))
    with numpyro.plate("schools", 3, dim=-2):
        z = numpyro.sample("z", dist.Normal(g, 0.7).to_event(1).expand((3, 1)))
        with numpyro.plate("pupils", 2, dim=-1):
            numpyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x[:, None] + jnp.zeros((3, 2)))


def vectors_guide(x):
    g = numpyro.sample("g", dist.Normal(a(), 0.9).expand([2]).to_event(1))
    with numpyro.plate("schools", 3, dim=-2):
        numpyro.sample("z", dist.Normal(b() * g + 0.3 * x[:, None, None], 0.8).to_event(1))


def two_plates_model(x):
    """Latents in two plates at once, none in one of them alone: one level of six elements."""
    g = numpyro.sample("g", dist.Normal(m(), 1.0))
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1):
        z = numpyro.sample("z", dist.Normal(g, 0.7))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def two_plates_guide(x):
    g = numpyro.sample("g", dist.Normal(a(), 0.9))
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1):
        numpyro.sample("z", dist.Normal(b() * g + 0.5 * x, 0.8))


def only_locals_model(x):
    """No global latent, but a site outside of the plate, so that the elements are no units."""
    numpyro.sample("y", dist.Normal(m(), 0.8), obs=0.6)
    with numpyro.plate("schools", 3):
        z = numpyro.sample("z", dist.Normal(m(), 0.7))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def only_locals_guide(x):
    with numpyro.plate("schools", 3):
        numpyro.sample("z", dist.Normal(b() + 0.5 * x, 0.8))


def scoped(program):
    def run(x):
        with scope(prefix="top", divider="."):
            program(x)

    return run


def scoped_steps():
    """Scope inside of the body of a scan, around a plate and within it."""

    def model(x):
        g = numpyro.sample("g", dist.Normal(m(), 1.0))

        def step(z, x):
            with scope(prefix="top", divider="."), numpyro.plate("schools", 3):
                z = numpyro.sample("z", dist.Normal(0.6 * z + 0.3 * g, 0.7))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
            return z, None

        scan(step, jnp.zeros(3), x)

    def guide(x):
        g, slope = numpyro.sample("g", dist.Normal(a(), 0.9)), b()

        def step(z, x):
            with scope(prefix="top", divider="."), numpyro.plate("schools", 3):
                z = numpyro.sample("z", dist.Normal(slope * z + 0.5 * x + 0.1 * g, 0.8))
            return z, None

        scan(step, jnp.zeros(3), x)

    return model, guide


SCOPED = [Of(None, ("top.g",), ("top.y",), ()), Of(0, ("top.z",), ("top.x",), (-1,), (-1,))]
SCANNED = [Of(None, ("g", "h"), ("y",), ()), Of(0, ("z",), ("x",), (-1,), (-1,))]
IN_SCOPE = [Of(None, ("g",), (), ()), Of(0, ("top.z",), ("top.x",), (-1,), (-1,))]
NO_Y = [Of(None, ("g",), (), ()), Of(0, ("z",), ("x",), (-1,), (-1,))]
CASES = {
    "one plate": Case(schools_model, schools_guide, SCHOOLS_X, SCHOOLS, 1),
    "mean-field": Case(schools_model, mean_field_guide, SCHOOLS_X, SCHOOLS, 1),
    "three levels": Case(districts_model, districts_guide, DISTRICTS_X, DISTRICTS, 3),
    "siblings": Case(siblings_model, siblings_guide, SCHOOLS_X, SIBLINGS, 1),
    "units on the left": units_case(-2),
    "units on the right": units_case(-1),
    "minibatch of units": minibatch_case(),
    "scan": Case(scan_model, scan_guide, SCAN_X, SCANNED, 1, scanned=("h", "y", "z", "x")),
    "data axis": Case(schools_model, schools_guide, UNITS_X, SCHOOLS, 1, data_axes=0),
    "masked": Case(masked_model, masked_guide, SCHOOLS_X, NO_Y, 1),
    "scaled": Case(scaled_model, schools_guide, SCHOOLS_X, NO_Y, 1),
    "auxiliary": Case(
        schools_model,
        auxiliary_guide,
        SCHOOLS_X,
        [Of(None, ("e", "g"), ("y",), ()), Of(0, ("u", "z"), ("x",), (-1,), (-1,))],
        1,
    ),
    "vectors": Case(
        vectors_model,
        vectors_guide,
        SCHOOLS_X,
        [Of(None, ("g",), (), ()), Of(0, ("z",), ("x",), (-2,), (-2,))],
        2,
    ),
    "two plates at once": Case(
        two_plates_model,
        two_plates_guide,
        UNITS_X,
        [Of(None, ("g",), (), ()), Of(0, ("z",), ("x",), (-2, -1), (-2, -1))],
        2,
    ),
    "no global latent": Case(
        only_locals_model,
        only_locals_guide,
        SCHOOLS_X,
        [Of(None, (), ("y",), ()), Of(0, ("z",), ("x",), (-1,), (-1,))],
        1,
    ),
    "scope": Case(scoped(schools_model), scoped(schools_guide), SCHOOLS_X, SCOPED, 1),
    "scope in scan": Case(*scoped_steps(), SCAN_X, IN_SCOPE, 1, scanned=("top.z", "top.x")),
}
THETA = {"m": jnp.array(0.2)}
PHI = {"a": jnp.array(0.5), "b": jnp.array(0.3)}
PARAMS = dict.fromkeys(CASES, (THETA, PHI))
PARAMS["scope"] = tuple({f"top.{k}": v for k, v in p.items()} for p in (THETA, PHI))


def draws_of(case, params, num, num_local, common):
    """Latents of each level, particles of all levels around it in front: values as the programs draw them."""
    particle = NestedParticle(WakeParticle(), num_local, common)

    def of_one(programs, index):
        levels = particle.levels(programs, index)

        def of_levels(runs, draws):
            return [{n: v for n, v in draws.latents.items() if n in level.sites} for level in levels.all]

        return particle.mapped(of_levels, levels, programs, index)

    return Vectorized(Data(case.data_axes))(of_one, programs_of(case.model, case.guide, *params, case.x), num)


def chain(levels, number):
    """The numbers of the levels from below the root down to this one."""
    return [] if levels[number].parent is None else [*chain(levels, levels[number].parent), number]


def log_densities(case, params, draws, x):
    """Log p and log q of each level, shapes (K, L, ..., L, *dims), at the latents of one datum or of all."""
    levels, num_local = case.levels, jax.tree.leaves(draws[-1])[0].shape[1]
    num = jax.tree.leaves(draws)[0].shape[0]

    def of_one(k, numbers):
        latents = {}
        for number, of_level in enumerate(draws):
            at = (k, *(numbers[n - 1] for n in chain(levels, number)))
            latents |= {name: value[at] for name, value in of_level.items()}
        results = []
        for program, values, kinds in ((case.model, params[0], (1, 2)), (case.guide, params[1], (1,))):
            with numpyro.handlers.seed(rng_seed=0), jax.debug_key_reuse(False):
                run = trace(substitute(program, {**values, **latents})).get_trace(x)
            results.append([_density(case, run, level, kinds) for level in levels])
        return results

    axes = len(levels) - 1
    for n in range(axes, 0, -1):
        inner = of_one
        of_one = lambda k, numbers, inner=inner, n=n: jax.vmap(
            lambda own: inner(k, [*numbers[: n - 1], own, *numbers[n:]])
        )(jnp.arange(num_local))
    of_all = jax.vmap(lambda k: of_one(k, [0] * axes))(jnp.arange(num))

    def own(x, number):  # what does not depend on levels beside and below has one value for all of them
        at = tuple(slice(None) if n in chain(levels, number) else 0 for n in range(1, axes + 1))
        return x[(slice(None), *at)]

    return [[own(x, number) for number, x in enumerate(of_program)] for of_program in of_all]


def _density(case, run, level, kinds):
    names = [*level.latents, *(level.observed if 2 in kinds else ())]
    total = jnp.zeros((1,) * case.num_dims)
    for name in names:
        if name in run:
            site = run[name]
            x = site["fn"].log_prob(site["value"]) * (1.0 if site["scale"] is None else site["scale"] / case.scale)
            x = x.sum(0) if name in case.scanned else x
            x = x.reshape((1,) * (case.num_dims - x.ndim) + x.shape)
            total = total + x.sum([d for d in range(-case.num_dims, 0) if d not in level.plates], keepdims=True)
    return total


def losses_by_hand(case, params, draws, x):
    """Minus the bound, plain wake-phi, and wake-phi with the control variate, of the formulas of the paper."""
    log_p, log_q = log_densities(case, params, draws, x)
    levels = case.levels
    log_w = [p - lax.stop_gradient(q) for p, q in zip(log_p, log_q, strict=True)]
    for number in range(len(levels) - 1, 0, -1):
        depth = len(chain(levels, number))
        mean = logsumexp(log_w[number], axis=depth) - jnp.log(log_w[number].shape[depth])
        log_w[levels[number].parent] = log_w[levels[number].parent] + mean.sum(levels[number].own, keepdims=True)
    theta = -jnp.sum(logsumexp(log_w[0], axis=0) - jnp.log(len(log_w[0])))
    w, plain, baseline = [], 0.0, 0.0
    for number, level in enumerate(levels):
        own = jax.nn.softmax(lax.stop_gradient(log_w[number]), axis=len(chain(levels, number)))
        w.append(own if level.parent is None else own * jnp.expand_dims(w[level.parent], len(chain(levels, number))))
        plain = plain - jnp.sum(w[number] * log_q[number])
        num_particles = len(own) * own.shape[1] ** len(chain(levels, number)) if number else len(own)
        baseline = baseline + jnp.sum(log_q[number]) / num_particles
    return tuple(case.scale * value for value in (theta, plain, plain + baseline - lax.stop_gradient(baseline)))
