"""Signal-to-noise ratio of the guide's gradient by number of particles (Rainforth et al. 2018, arXiv 1802.04537).

Model: z ~ N(mu, I), x | z ~ N(z, I) in 20 dimensions; guide: N(A x + b, 2/3 I). There are 1,024 data of the model,
mu is drawn once from N(0, I) or zero, and the guide's parameters are the best ones, A = I / 2 and b = mu / 2, each
moved by N(0, 0.01^2). Of each coordinate the ratio is |mean| / standard deviation of the gradient that is summed over
all data. `snr` is the root mean square of these ratios over the coordinates of A and b. The squared mean of n repeats
contains variance / n of noise, which is subtracted.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp
from numpyro.handlers import seed

import rws_jax

NUM_DIMS, NUM_DATA = 20, 1024
MU = {"drawn": jax.random.normal(jax.random.key(0), (NUM_DIMS,)), "zero": jnp.zeros(NUM_DIMS)}
VARIANCE = 2.0 / 3.0

METHODS = {
    "pathwise IWAE": None,
    "wake, plain": {"control_variate": False},
    "wake": {},
    "DReG": {"gradient": "dreg"},
}
SETTINGS = [
    {"num_particles": k, "method": method, "mu": mu, "num_repeats": 100}
    for k in (3, 10, 17, 30, 100, 300, 1000)
    for method, mu in [*((method, "drawn") for method in METHODS), ("pathwise IWAE", "zero")]
    if mu == "drawn" or k in (3, 17, 100)
]


def model(x, mu):
    """A latent of 20 dimensions for each datum."""
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x, mu):
    """A normal of linear mean and known scale for each datum."""
    A = numpyro.param("A", 0.5 * jnp.eye(NUM_DIMS))
    b = numpyro.param("b", 0.5 * mu)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(x @ A.T + b, VARIANCE**0.5).to_event(1))


def pathwise_iwae(phi, rng_key, x, mu, num_particles):
    """Minus the importance-weighted bound, as a function of the guide's parameters through its draws."""
    normal = lambda z, mean, variance: -0.5 * jnp.sum((z - mean) ** 2 / variance, axis=-1)  # without constants
    mean = x @ phi["A"].T + phi["b"]
    z = mean + VARIANCE**0.5 * jax.random.normal(rng_key, (num_particles, *x.shape))
    return -jnp.sum(logsumexp(normal(z, mu, 1.0) + normal(x, z, 1.0) - normal(z, mean, VARIANCE), axis=0))


def run(num_particles, method, mu, num_repeats):
    """The ratio, by repeated draws for the same data."""
    keys, mu = jax.random.split(jax.random.key(1), 4), MU[mu]
    x = mu + 2.0**0.5 * jax.random.normal(keys[0], (NUM_DATA, NUM_DIMS))
    phi = {
        "A": 0.5 * jnp.eye(NUM_DIMS) + 0.01 * jax.random.normal(keys[1], (NUM_DIMS, NUM_DIMS)),
        "b": 0.5 * mu + 0.01 * jax.random.normal(keys[2], (NUM_DIMS,)),
    }

    def loss(phi, rng_key):
        if METHODS[method] is None:
            return pathwise_iwae(phi, rng_key, x, mu, num_particles)
        programs = [seed(program, key) for program, key in zip((model, guide), jax.random.split(rng_key), strict=True)]
        return rws_jax.wake_phi_loss({}, phi, *programs, x, mu, num_particles=num_particles, **METHODS[method])

    gradient = lambda rng_key: ravel_pytree(jax.grad(loss)(phi, rng_key))[0]
    grads = jax.jit(lambda keys: jax.lax.map(gradient, keys))(jax.random.split(keys[3], num_repeats))
    variance = grads.var(axis=0, ddof=1)
    squares = (grads.mean(axis=0) ** 2 - variance / num_repeats) / variance
    return {"snr": float(jnp.sqrt(jnp.maximum(squares.mean(), 0.0)))}


# Of the pathwise gradient, by an independent re-run whose mu is not known.
REFERENCE = {3: 0.41, 17: 0.20, 100: 0.09}
STYLES = {
    "pathwise IWAE": ("#CC79A7", "-.", "s"),
    "wake, plain": ("#56B4E9", "--", "^"),
    "wake": ("#0072B2", "-", "o"),
    "DReG": ("#D55E00", "-", "D"),
}


def tables(runs):
    """By number of particles and method."""
    snr = {(run["num_particles"], run["method"], run["mu"]): f"{run['snr']:.2f}" for run in runs}
    columns = [(method, "drawn") for method in METHODS] + [("pathwise IWAE", "zero")]
    rows = [f"| K | {' | '.join(METHODS)} | pathwise IWAE, mu = 0 | pathwise IWAE, re-run |", "|---" * 7 + "|"]
    for k in sorted({k for k, *_ in snr}):
        cells = [snr.get((k, *column), "") for column in columns]
        rows.append(f"| {k} | {' | '.join(cells)} | {REFERENCE.get(k, '')} |")
    return "\n".join(rows)


def figure(runs):
    """The ratio against the number of particles, with lines of slope 1/2 and -1/2."""
    import matplotlib.pyplot as plt

    drawn = [run for run in runs if run["mu"] == "drawn"]
    fig, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for method, (color, style, marker) in STYLES.items():
        points = sorted((run["num_particles"], run["snr"]) for run in drawn if run["method"] == method)
        if points:
            ax.plot(*zip(*points, strict=True), style, color=color, marker=marker, label=method)
            k, snr = points[0]
            power = -0.5 if method == "pathwise IWAE" else 0.5
            if method in ("pathwise IWAE", "wake"):
                ends = [k, points[-1][0]]
                ax.plot(ends, [snr * (end / k) ** power for end in ends], ":", color="#777777", linewidth=1.2)
    ax.plot([], [], ":", color="#777777", label="slopes of -1/2 and 1/2")
    ax.set(xscale="log", yscale="log", xlabel="number of particles K", ylabel="signal-to-noise ratio")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return fig
