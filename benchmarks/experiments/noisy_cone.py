"""A noisy cone: x, y ~ N(0, 10), z ~ N(x^2 + y^2, 0.1 + (x^2 + y^2) / 100), of which z = 5 is seen.

The posterior is a thin ring, and the guide two independent normals: no guide of this family is near. Becker et al.
(Probabilistic Programming with Programmable Variational Inference, PLDI 2024) report the ELBO and IWAE(5) of this
guide. The evidence is exact here, by quadrature: s = x^2 + y^2 is exponential with mean 200.
"""

import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.special import logsumexp
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

import rws_jax

DATUM = 5.0
METHODS = {
    "ELBO (NumPyro)": lambda: Trace_ELBO(num_particles=100),
    "IWAE(5) (NumPyro)": lambda: RenyiELBO(alpha=0.0, num_particles=5),
    "wake, K = 5": lambda: rws_jax.ReweightedWakeSleep(num_particles=5),
    "wake, K = 1000": lambda: rws_jax.ReweightedWakeSleep(num_particles=1000),
}
SETTINGS = [{"method": method, "num_seeds": 5, "num_steps": 20_000} for method in METHODS]


def model():
    """A point of the plane, and the noisy height of the cone over it."""
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    y = numpyro.sample("y", dist.Normal(0.0, 10.0))
    s = x**2 + y**2
    numpyro.sample("z", dist.Normal(s, 0.1 + s / 100.0), obs=DATUM)


def guide():
    """Two normals, started at random places with scale 1."""
    for name in "xy":
        loc = numpyro.param(f"{name}_loc", lambda key: 3.0 * jax.random.normal(key))
        scale = numpyro.param(f"{name}_scale", 1.0, constraint=dist.constraints.positive)
        numpyro.sample(name, dist.Normal(loc, scale))


def evidence():
    """Exact log evidence, by the trapezoid rule."""
    s = np.linspace(0.0, 40.0, 400_001)
    scale = 0.1 + s / 100.0
    density = np.exp(-s / 200.0 - 0.5 * ((DATUM - s) / scale) ** 2) / 200.0 / scale / math.sqrt(2.0 * math.pi)
    return math.log(np.trapezoid(density, s))


def log_weights(params, rng_key, shape):
    """Log weights of draws from the guide."""
    loc = jnp.array([params["x_loc"], params["y_loc"]])
    scale = jnp.array([params["x_scale"], params["y_scale"]])
    q = dist.Normal(loc, scale)
    draws = q.sample(rng_key, shape)
    s = jnp.sum(draws**2, axis=-1)
    log_p = dist.Normal(0.0, 10.0).log_prob(draws).sum(-1) + dist.Normal(s, 0.1 + s / 100.0).log_prob(DATUM)
    return log_p - q.log_prob(draws).sum(-1)


def run(method, num_seeds, num_steps):
    """ELBO, IWAE(5) and the estimate of the log evidence by a million draws, after training."""

    def train(rng_key):
        svi = SVI(model, guide, optax.adam(optax.exponential_decay(3e-2, num_steps, 1e-2)), METHODS[method]())
        train_key, *keys = jax.random.split(rng_key, 4)
        body = lambda state, _: (svi.update(state)[0], None)
        state, _ = jax.lax.scan(body, svi.init(train_key), length=num_steps)
        params = svi.get_params(state)
        bound = lambda key, k: jnp.mean(logsumexp(log_weights(params, key, (k, 1_000_000 // k)), axis=0) - math.log(k))
        return [bound(key, k) for key, k in zip(keys, (1, 5, 1_000_000), strict=True)]

    numbers = jax.jit(jax.vmap(train))(jax.vmap(jax.random.key)(jnp.arange(num_seeds)))
    names = "elbo", "iwae_5", "log_evidence"
    return {name: [round(float(v), 4) for v in values] for name, values in zip(names, numbers, strict=True)}


def tables(runs):
    """By method, beside the paper's numbers and the exact evidence."""
    middle = lambda values: f"{statistics.median(values):.3f}"
    spread = lambda values: f"{middle(values)} ({min(values):.3f} to {max(values):.3f})"
    reference = {"ELBO (NumPyro)": ("-8.08", ""), "IWAE(5) (NumPyro)": ("", "-7.77")}
    header = "| trained on | ELBO | PLDI 2024 | IWAE(5) | PLDI 2024 | log evidence by 10⁶ draws |"
    rows = [header, "|---|---|---|---|---|---|"]
    for run in runs:
        elbo, iwae = reference.get(run["method"], ("", ""))
        cells = run["method"], spread(run["elbo"]), elbo, spread(run["iwae_5"]), iwae, spread(run["log_evidence"])
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, f"| exact | | | | | {evidence():.3f} |"])
