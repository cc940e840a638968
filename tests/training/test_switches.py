"""A whole `init` and step under JAX's switches: strict promotion of types, and no compilation at all."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import rws_jax

X = jnp.array([0.5, -1.0, 2.0], jnp.float32)
ZERO, ONE = jnp.float32(0.0), jnp.float32(1.0)


def model(x):
    scale = numpyro.param("scale", ONE, constraint=dist.constraints.positive)
    with numpyro.plate("data", 6, subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(ZERO, scale))
        numpyro.sample("x", dist.Normal(z, ONE), obs=x)


def guide(x):
    slope = numpyro.param("slope", ZERO)
    with numpyro.plate("data", 6, subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(slope * x, ONE))


def branching_model(x):
    z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5], jnp.float32)), infer={"branching": True})
    numpyro.sample("x", dist.Normal(ONE if z else ZERO, numpyro.param("scale", ONE)), obs=x)


def branching_guide(x):
    logits = numpyro.param("logits", jnp.zeros(2, jnp.float32))
    numpyro.sample("z", dist.Categorical(logits=logits), infer={"branching": True})


OPTIONS = {
    "dreams": {"insomnia": 0.5},
    "schedule": {"insomnia": optax.linear_schedule(1.0, 0.5, 10), "phi_steps": 2},
    "defensive": {"defensive": 0.2},
    "chunks": {"chunk_size": 1},
    "dreg": {"gradient": "dreg"},
    "vimco": {"gradient": "vimco"},
    "one by one": {"vectorize_particles": False, "insomnia": 0.5},
    "branching": {"data_axes": 0, "compile_after": 0},
}
SWITCHES = {"strict": lambda: jax.numpy_dtype_promotion("strict"), "without jit": jax.disable_jit}
FAST = ["strict-dreams", "strict-vimco", "without jit-vimco"]
CASES = [f"{switch}-{name}" for switch in SWITCHES for name in OPTIONS]


@pytest.mark.slow
@pytest.mark.usefixtures("allow_key_reuse")
@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_init_and_steps_do_not_depend_on_switches(case):
    """Adam itself needs promotion of its count of steps, so the optimizers are others."""
    switch, name = case.split("-")
    programs = (branching_model, branching_guide) if name == "branching" else (model, guide)

    def train():
        sgd = {"theta_optimizer": optax.sgd(0.1), "phi_optimizer": optax.sgd(0.1)}
        rws = rws_jax.make_step(*programs, **sgd, **OPTIONS[name])
        state, info = rws.step(rws.init(jax.random.key(0), X), X)
        return info.phi_loss, rws.get_params(state, X)

    expected_loss, expected = train()
    with SWITCHES[switch]():
        loss, params = train()
    assert jnp.allclose(loss, expected_loss, rtol=1e-5)
    assert all(jnp.allclose(params[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)
