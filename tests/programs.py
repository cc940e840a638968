"""Models and guides that several tests share, each with an oracle worked out without the package."""

import itertools

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import cond, scan

# Two binary latents in a plate; every quantity by enumeration

BINARY_DATA = jnp.array([0.0, 1.0, 1.0])
BINARY_THETA = {"p1": jnp.array(0.3), "t2": jnp.array([-0.4, 0.9]), "tx": jnp.array([[-1.5, 0.2], [0.7, 1.8]])}
BINARY_PHI = {"a": jnp.array([0.4, -0.8]), "b": jnp.array([[0.3, -1.1], [0.9, 0.5]])}


def binary_model(x):
    p1 = numpyro.param("p1", 0.3, constraint=dist.constraints.unit_interval)
    t2 = numpyro.param("t2", BINARY_THETA["t2"])
    tx = numpyro.param("tx", BINARY_THETA["tx"])
    with numpyro.plate("data", len(x)):
        z1 = numpyro.sample("z1", dist.Bernoulli(p1))
        z2 = numpyro.sample("z2", dist.Bernoulli(logits=t2[z1]))
        numpyro.sample("x", dist.Bernoulli(logits=tx[z1, z2]), obs=x)


def binary_guide(x):
    a, b = numpyro.param("a", BINARY_PHI["a"]), numpyro.param("b", BINARY_PHI["b"])
    x = x.astype(int)
    with numpyro.plate("data", len(x)):
        z1 = numpyro.sample("z1", dist.Bernoulli(logits=a[x]))
        numpyro.sample("z2", dist.Bernoulli(logits=b[x, z1]))


def log_bernoulli(logit, value):
    return jnp.where(value == 1, jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit))


BINARY_STATES = jnp.array(list(itertools.product([0, 1], repeat=2)))  # (4, 2): all (z1, z2)


def binary_log_p(theta, x):
    """log p(z, x) of one datum for each of the four states."""
    z1, z2 = BINARY_STATES.T
    log_p1 = jnp.where(z1 == 1, jnp.log(theta["p1"]), jnp.log1p(-theta["p1"]))
    return log_p1 + log_bernoulli(theta["t2"][z1], z2) + log_bernoulli(theta["tx"][z1, z2], x)


def binary_log_q(phi, x):
    """log q(z | x) of one datum for each of the four states."""
    z1, z2 = BINARY_STATES.T
    x = x.astype(int)
    return log_bernoulli(phi["a"][x], z1) + log_bernoulli(phi["b"][x, z1], z2)


# Two dependent Gaussian latents, with guides of every kind that once leaked gradients

GAUSSIAN_X = 1.3


def gaussian_model(x):
    z1 = numpyro.sample("z1", dist.Normal(numpyro.param("mu", 0.2), 1.0))
    z2 = numpyro.sample("z2", dist.Normal(z1, 1.0))
    numpyro.sample("x", dist.Normal(z2, 1.0), obs=x)


def gaussian_guide(x):
    z1 = numpyro.sample("z1", dist.Normal(numpyro.param("a", 0.5), 1.0))
    numpyro.sample("z2", dist.Normal(numpyro.param("c", 0.7) * z1, 1.0))


def transformed_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    affine = dist.transforms.AffineTransform
    z1 = numpyro.sample("z1", dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine(a, 1.0)))
    numpyro.sample("z2", dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine(c * z1, 1.0)))


def gaussian_log_p(theta, z, x):
    return norm.logpdf(z["z1"], theta["mu"]) + norm.logpdf(z["z2"], z["z1"]) + norm.logpdf(x, z["z2"])


def gaussian_log_q(phi, z, x):
    return norm.logpdf(z["z1"], phi["a"]) + norm.logpdf(z["z2"], phi["c"] * z["z1"])


SCAN_X = jnp.array([0.4, -0.3, 1.1, 0.6])


def scan_model(x, observed=True):
    mu = numpyro.param("mu", 0.2)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(0.8 * z + mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x if observed else None)
        return z, None

    scan(step, 0.0, x)


def scan_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(c * z + a * x, 0.7))
        return z, None

    scan(step, 0.0, x)


def _previous(z):
    return jnp.concatenate([jnp.zeros_like(z[:, :1]), z[:, :-1]], axis=1)


def scan_log_p(theta, z, x):
    z = z["z"]
    log_p = norm.logpdf(z, 0.8 * _previous(z) + theta["mu"]) + norm.logpdf(x[None], z, 0.5)
    return log_p.sum(axis=1)


def scan_log_q(phi, z, x):
    z = z["z"]
    return norm.logpdf(z, phi["c"] * _previous(z) + phi["a"] * x[None], 0.7).sum(axis=1)


def cond_model(x):
    mu = numpyro.param("mu", 0.2)
    branch = numpyro.sample("branch", dist.Bernoulli(0.4))
    high = lambda _: numpyro.sample("z", dist.Normal(2.0 + mu, 1.0))
    low = lambda _: numpyro.sample("z", dist.Normal(-1.0, 0.5))
    z = cond(branch == 1, high, low, None)
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def cond_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)
    branch = numpyro.sample("branch", dist.Bernoulli(logits=a))
    high = lambda _: numpyro.sample("z", dist.Normal(c * x + a, 1.0))
    low = lambda _: numpyro.sample("z", dist.Normal(c, 0.5))
    cond(branch == 1, high, low, None)


def cond_log_p(theta, z, x):
    high = z["branch"] == 1
    log_branch = jnp.where(high, jnp.log(0.4), jnp.log(0.6))
    loc, scale = jnp.where(high, 2.0 + theta["mu"], -1.0), jnp.where(high, 1.0, 0.5)
    return log_branch + norm.logpdf(z["z"], loc, scale) + norm.logpdf(x, z["z"])


def cond_log_q(phi, z, x):
    high = z["branch"] == 1
    loc = jnp.where(high, phi["c"] * x + phi["a"], phi["c"])
    return log_bernoulli(phi["a"], z["branch"]) + norm.logpdf(z["z"], loc, jnp.where(high, 1.0, 0.5))


def reversed_guide(x):
    """Runs backward in time, as a smoother does: z at t depends on z at t + 1."""
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(c * z + a * x, 0.7))
        return z, None

    scan(step, 0.0, x, reverse=True)


def reversed_log_q(phi, z, x):
    z = z["z"]
    following = jnp.concatenate([z[:, 1:], jnp.zeros_like(z[:, :1])], axis=1)
    return norm.logpdf(z, phi["c"] * following + phi["a"] * x[None], 0.7).sum(axis=1)


def switching_model(x):
    """A cond within a scan."""
    mu = numpyro.param("mu", 0.2)

    def step(z, x):
        high = lambda z: numpyro.sample("z", dist.Normal(z + mu, 1.0))
        low = lambda z: numpyro.sample("z", dist.Normal(-z, 0.5))
        z = cond(z > 0, high, low, z)
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return z, None

    scan(step, 0.1, x)


def switching_guide(x):
    a, c = numpyro.param("a", 0.5), numpyro.param("c", 0.7)

    def step(z, x):
        high = lambda z: numpyro.sample("z", dist.Normal(c * z + a * x, 1.0))
        low = lambda z: numpyro.sample("z", dist.Normal(a, 0.5))
        return cond(z > 0, high, low, z), None

    scan(step, 0.1, x)


def _switching(z):
    previous = jnp.concatenate([jnp.full_like(z[:, :1], 0.1), z[:, :-1]], axis=1)
    return previous, previous > 0, jnp.where(previous > 0, 1.0, 0.5)


def switching_log_p(theta, z, x):
    previous, high, scale = _switching(z["z"])
    log_p = norm.logpdf(z["z"], jnp.where(high, previous + theta["mu"], -previous), scale)
    return (log_p + norm.logpdf(x[None], z["z"], 0.5)).sum(axis=1)


def switching_log_q(phi, z, x):
    previous, high, scale = _switching(z["z"])
    loc = jnp.where(high, phi["c"] * previous + phi["a"] * x[None], phi["a"])
    return norm.logpdf(z["z"], loc, scale).sum(axis=1)


# name -> model, guide, data, log p, log q; log densities of (particles,) draws, written out by hand
BY_HAND = {
    "gaussian": (gaussian_model, gaussian_guide, GAUSSIAN_X, gaussian_log_p, gaussian_log_q),
    "transformed": (gaussian_model, transformed_guide, GAUSSIAN_X, gaussian_log_p, gaussian_log_q),
    "scan": (scan_model, scan_guide, SCAN_X, scan_log_p, scan_log_q),
    "reversed scan": (scan_model, reversed_guide, SCAN_X, scan_log_p, reversed_log_q),
    "cond in scan": (switching_model, switching_guide, SCAN_X, switching_log_p, switching_log_q),
    "cond": (cond_model, cond_guide, GAUSSIAN_X, cond_log_p, cond_log_q),
}
BY_HAND_THETA = {"mu": jnp.array(0.2)}
BY_HAND_PHI = {"a": jnp.array(0.5), "c": jnp.array(0.7)}
