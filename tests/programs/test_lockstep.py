"""What programs have to be for their scans to run in lockstep; what is carried from step to step."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import block, mask, replay, scale, seed, trace

from rws_jax.estimators.resampled import ResampledParticle
from rws_jax.estimators.wake import WakeParticle
from rws_jax.execution.vectorized import Vectorized
from rws_jax.programs.program import Arguments, Index, Program, Programs

X = jnp.array([0.4, -0.3, 1.1, 0.6])
PARTICLE = ResampledParticle(WakeParticle(), 0.5)


def programs_of(model, guide, x=X):
    keys = jax.random.split(jax.random.key(0))
    of = lambda fn, role, key: Program(fn, role, key, None, mutable_state={})
    return Programs(of(model, "model", keys[0]), of(guide, "guide", keys[1]), None, Arguments.of((x,), {}))


def run(model, guide, x=X):
    return jax.eval_shape(lambda: Vectorized()(PARTICLE, programs_of(model, guide, x), 3))


def program(
    name="z", observes=True, before=None, after=None, length=None, reverse=False, times=1, latent=True, xs=None
):
    """A model, or a guide if it observes nothing."""

    def run(x):
        drawn = 0.0 if before is None else before()

        def step(z, x):
            if latent:
                z = numpyro.sample(name, dist.Normal(z + drawn, 1.0))
            if observes:
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        for _ in range(times):
            scan(step, 0.0, x[:length] if xs is None else xs(x, drawn), reverse=reverse)
        if after is not None:
            after(x)

    return run


MODEL, GUIDE = program(), program(observes=False)
draw = lambda name, loc=0.0: lambda *_: numpyro.sample(name, dist.Normal(loc, 1.0))
no_scan = lambda x: draw("z")()
in_a_cond = lambda x: cond(x[0] > 0, GUIDE, GUIDE, x)


def with_plate(observes):
    """Series in a plate in the body: each would be a unit."""

    def run(x):
        def step(z, x):
            with numpyro.plate("series", 3):
                z = numpyro.sample("z", dist.Normal(z, 1.0))
                if observes:
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(step, jnp.zeros(3), jnp.stack([x] * 3, axis=1))

    return run


moving = lambda x, drawn: x + drawn
observes_after = lambda x: numpyro.sample("late", dist.Normal(0.0, 1.0), obs=x[0])


def own(x):
    """A scan of auxiliary latents."""
    step = lambda u, x: (numpyro.sample("u", dist.Normal(u, 1.0), infer={"is_auxiliary": True}), None)
    scan(step, 0.0, x)


ERRORS = {
    "no scan in the model": (
        lambda x: numpyro.sample("x", dist.Normal(draw("z")(), 1.0), obs=x[0]),
        no_scan,
        "the model has no scan",
    ),
    "no scan in the guide": (
        MODEL,
        lambda x: numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0)),
        "the guide has no scan",
    ),
    "a scan in a cond": (MODEL, in_a_cond, "the guide has no scan"),
    "two scans": (
        lambda x: (program()(x), program("y", observes=False)(x)),
        lambda x: (GUIDE(x), program("y", observes=False)(x)),
        "the model has 2 scans",
    ),
    "directions": (program(reverse=True), GUIDE, "opposite directions"),
    "a latent after": (
        program(after=draw("late")),
        program(observes=False, after=draw("late")),
        "site 'late' of the model comes after",
    ),
    "data after": (program(after=observes_after), GUIDE, "site 'late' of the model comes after"),
    "a factor after": (
        program(after=lambda x: numpyro.factor("late", x[0])),
        GUIDE,
        "site 'late' of the model comes after",
    ),
    "an auxiliary site after": (
        MODEL,
        program(observes=False, after=lambda x: numpyro.sample("u", dist.Normal(), infer={"is_auxiliary": True})),
        "site 'u' of the guide comes after",
    ),
    "no data": (
        program(observes=False, before=lambda: numpyro.sample("x", dist.Normal(), obs=0.1)),
        GUIDE,
        "the scan of the model observes nothing",
    ),
    "inside and outside": (
        MODEL,
        lambda x: (numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0)), own(x)),
        "latent site 'z' is in the scan of the model and not in that of the guide",
    ),
    "a plate of series": (with_plate(True), with_plate(False), "plates make units of the sequences"),
    "xs of latents": (
        program(before=draw("shift"), xs=moving),
        program(observes=False, before=draw("shift")),
        "the scan of the model runs over arrays that depend on latents",
    ),
    "mask around": (mask(MODEL, mask=jnp.array(True)), mask(GUIDE, mask=jnp.array(True)), "changes site"),
    "block around": (block(MODEL, hide=["x"]), GUIDE, "changes site 'x'"),
    "scales around": (scale(MODEL, jnp.ones(4)), GUIDE, "changes site 'z'"),
    "replay around": (
        MODEL,
        replay(GUIDE, trace(seed(GUIDE, 0)).get_trace(X)),
        "numpyro.handlers.replay is around a scan of the guide",
    ),
}


@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_run_in_lockstep_is_refused_by_name(case):
    model, guide, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError)) as error:
        run(model, guide)
    assert "\n  expected:" in str(error.value)
    assert message in str(error.value)


def test_what_differs_between_particles_moves_and_what_they_share_does_not():
    """A latent that bodies close over is of a particle; parameters, data, and counts in the carry are common."""
    table = jnp.arange(12.0)

    def model(x):
        scale, mu = numpyro.sample("scale", dist.LogNormal(0.0, 1.0)), numpyro.param("mu", 0.5)

        def step(carry, _):
            z, t = carry
            z = numpyro.sample("z", dist.Normal(mu * z, scale))
            numpyro.sample("x", dist.Normal(z + table[t], 1.0), obs=x[t])
            return (z, t + 1), None

        scan(step, (0.0, 0), None, length=len(x))

    def guide(x):
        numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        step = lambda z, x: (numpyro.sample("z", dist.Normal(z, 1.0)), None)
        scan(step, jnp.zeros(()), x)

    steps = PARTICLE.lockstep(programs_of(model, guide), Index(0))
    assert [leaf.shape for leaf in steps.start.own] == [(), (), ()]  # z of either program, and the scale
    assert [leaf.dtype for leaf in steps.start.common] == [jnp.int32]  # t
    draws = PARTICLE.wake.draw(programs_of(model, guide), Index(0))
    assert any(leaf == draws.latents["scale"] for leaf in steps.start.own)
    assert set(steps.before.latents) == {"scale"}


def test_what_is_a_number_of_a_latent_moves_too():
    """It is no arithmetic of the latent, but differs from particle to particle all the same."""

    def model(x):
        has_log = jnp.isfinite(jnp.log(numpyro.sample("z0", dist.Normal(0.0, 1.0))))

        def step(z, x):
            z = numpyro.sample("z", dist.Normal(z, 1.0))
            numpyro.sample("x", dist.Normal(jnp.where(has_log, z, -z), 1.0), obs=x)
            return z, None

        scan(step, 0.0, x)

    def guide(x):
        numpyro.sample("z0", dist.Normal(0.0, 1.0))
        scan(lambda z, x: (numpyro.sample("z", dist.Normal(z, 1.0)), None), 0.0, x)

    steps = PARTICLE.lockstep(programs_of(model, guide), Index(0))
    assert jnp.bool_ in [leaf.dtype for leaf in steps.start.own]


def test_both_programs_run_in_one_loop_and_the_runs_that_are_checked_leave_nothing():
    def loops(jaxpr):
        inner = [sub for eqn in jaxpr.eqns for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)]
        own = sum(eqn.primitive.name == "scan" and eqn.params["length"] == len(X) for eqn in jaxpr.eqns)
        return own + sum(loops(getattr(sub, "jaxpr", sub)) for sub in inner if is_jaxpr(sub))

    is_jaxpr = lambda leaf: isinstance(leaf, Jaxpr | ClosedJaxpr)
    traced = jax.make_jaxpr(lambda x: Vectorized()(PARTICLE, programs_of(MODEL, GUIDE, x), 3))(X)
    assert loops(traced.jaxpr) == 1
