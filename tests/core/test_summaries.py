"""States and infos in one line, as a notebook shows them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import rws_jax
from rws_jax import RWSInfo, RWSState

NOTHING = dict.fromkeys(RWSInfo._fields)
ONE = RWSInfo(**NOTHING | {"phi_loss": jnp.float32(1234.56), "finite": jnp.array(True), "num_paths": jnp.int32(7)})
MANY = RWSInfo(
    **NOTHING
    | {
        "phi_loss": jnp.linspace(2.0, 1.0, 500),
        "ess_mean": np.linspace(1.0, jnp.nan, 500, dtype=np.float32),
        "finite": jnp.arange(500) > 2,
    }
)
SEEDS = RWSInfo(**NOTHING | {"phi_loss": jnp.zeros((500, 3)), "finite": jnp.ones((500, 3), bool)})
STATE = RWSState(
    theta={"m": jnp.float32(0.5), "w": jnp.zeros((3, 2)), "net$params": {"a": jnp.zeros(2), "b": [jnp.zeros(2)]}},
    phi={f"p{number}": jnp.zeros(1) for number in range(10)},
    theta_opt_state=(jnp.zeros(()), {"m": jnp.zeros(3)}),
    phi_opt_state=(),
    rng_key=jax.random.key(0),
    step=jnp.int32(300),
)
ENTRIES = ", ".join(f"'p{number}': float32[1]" for number in range(8))
SHOWN = {
    "an info": (ONE, "RWSInfo(phi_loss=1235, finite=True, num_paths=7)"),
    "infos": (MANY, "RWSInfo(shape=(500,), phi_loss=2 ... 1, ess_mean=nan ... nan, finite=497 of 500)"),
    "infos of seeds": (SEEDS, "RWSInfo(shape=(500, 3), phi_loss=float32[500, 3], finite=1500 of 1500)"),
    "no infos": (
        RWSInfo.of_no_steps(),
        "RWSInfo(shape=(0,), phi_loss=float32[0], insomnia=float32[0], finite=0 of 0)",
    ),
    "a state": (
        STATE,
        "RWSState(theta={'m': 0.5, 'w': float32[3, 2], 'net$params': 2 arrays}, phi={"
        + ENTRIES
        + ", and 2 more}, theta_opt_state=2 arrays, phi_opt_state=0 arrays, rng_key=key<fry>[], step=300)",
    ),
    "axes of vmap": (RWSState(0, 0, None, None, 0, 0), "RWSState(theta=0, phi=0, rng_key=0, step=0)"),
    "shapes": (
        jax.eval_shape(lambda: ONE),
        "RWSInfo(phi_loss=float32[], finite=bool[], num_paths=int32[])",
    ),
}


@pytest.mark.parametrize(("value", "expected"), SHOWN.values(), ids=SHOWN)
def test_one_line_says_what_there_is(value, expected):
    assert repr(value) == expected


def test_what_is_traced_or_has_been_given_away_is_shown_by_its_shape():
    seen = []
    jax.jit(lambda info: seen.append(repr(info)))(ONE)
    info = jax.tree.map(lambda leaf: leaf + 0, MANY._replace(finite=None))
    jax.jit(lambda info: jax.tree.map(lambda leaf: leaf + 1, info), donate_argnums=0)(info)
    seen.append(repr(info))
    assert seen == [
        "RWSInfo(phi_loss=float32[], finite=bool[], num_paths=int32[])",
        "RWSInfo(shape=(500,), phi_loss=float32[500], ess_mean=nan ... nan)",
    ]


def test_a_fit_that_is_not_assigned_fills_a_few_lines():
    def model(x):
        weights = numpyro.param("weights", jnp.zeros((200, 50)))
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([200]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weights, 1.0).to_event(1), obs=x)

    def guide(x):
        numpyro.sample("z", dist.Normal(x @ numpyro.param("v", jnp.zeros((50, 200))), 1.0).to_event(1))

    rws = rws_jax.make_step(model, guide)
    state = rws.init(jax.random.key(0), jnp.zeros(50))
    assert len(repr(rws_jax.fit(rws.step, state, 40, jnp.zeros(50), progress_bar=False))) < 700
