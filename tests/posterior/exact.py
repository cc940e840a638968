"""Programs whose posterior is known: evidence of each unit, mean and variance of each latent, in closed form."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan


class Case(NamedTuple):
    """Programs with their arguments, and what is exact."""

    model: object
    guide: object
    params: dict
    args: tuple
    log_evidence: np.ndarray  # of shape ``units``
    means: dict[str, np.ndarray]  # of each latent, of the shape that it has in the program, after that of data
    variances: dict[str, np.ndarray]
    options: Mapping = MappingProxyType({})


def linear(prior, matrix, noise, x):
    """Log evidence, mean and covariance of z ~ N(0, prior) given x ~ N(matrix z, noise)."""
    cov = matrix @ prior @ matrix.T + noise
    gain = prior @ matrix.T @ np.linalg.inv(cov)
    log_evidence = -0.5 * (x @ np.linalg.solve(cov, x) + np.linalg.slogdet(2 * np.pi * cov)[1])
    return log_evidence, gain @ x, prior - gain @ matrix @ prior


def log_normal(x, loc, variance):
    return -0.5 * ((x - loc) ** 2 / variance + np.log(2 * np.pi * variance))


def one_gaussian():
    def model(x):
        loc = numpyro.param("loc", 0.0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(loc, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        slope = numpyro.param("slope", 0.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(slope * x, 1.0))

    x = np.array([-1.0, 0.5, 2.0], np.float32)
    mean = {"z": (0.5 + x) / 2}
    return Case(model, guide, {"loc": 0.5, "slope": 0.4}, (x,), log_normal(x, 0.5, 2.0), mean, {"z": 0.5 + 0 * x})


def two_gaussians():
    """A plate within the units' one, whose axis comes before that of the units; and a latent that has an event."""

    def model(x):
        with numpyro.plate("data", x.shape[-1]):
            numpyro.sample("c", dist.Normal(jnp.zeros(2), 1.0).to_event(1))  # which no data bear upon
            with numpyro.plate("features", 2):
                a = numpyro.sample("a", dist.Normal(0.0, 1.0))
                b = numpyro.sample("b", dist.Normal(a, 1.0))
                numpyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", x.shape[-1]):
            numpyro.sample("c", dist.Normal(0.1 * jnp.ones(2), 1.1).to_event(1))
            with numpyro.plate("features", 2):
                b = numpyro.sample("b", dist.Normal(0.6 * x, 1.0))
                numpyro.sample("a", dist.Normal(0.5 * b, 0.8))

    x = np.array([[-1.0, 0.5, 2.0], [0.0, 1.0, -0.5]], np.float32)
    evidence = log_normal(x, 0.0, 3.0).sum(axis=0)
    variances = {"a": 2 / 3 + 0 * x, "b": 2 / 3 + 0 * x, "c": np.ones((3, 2))}
    return Case(model, guide, {}, (x,), evidence, {"a": x / 3, "b": 2 * x / 3, "c": np.zeros((3, 2))}, variances)


def discrete():
    p, locs = np.array([0.2, 0.3, 0.5]), np.array([-2.0, 0.0, 2.0])

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array(p)))
            numpyro.sample("x", dist.Normal(jnp.array(locs)[z], 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Categorical(logits=x[:, None] * jnp.array(locs)))

    x = np.array([-1.0, 0.2, 1.5, 0.6], np.float32)
    joint = p * np.exp(log_normal(x[:, None], locs, 1.0))
    posterior, values = joint / joint.sum(axis=1, keepdims=True), np.arange(3)
    mean = posterior @ values
    return Case(model, guide, {}, (x,), np.log(joint.sum(axis=1)), {"z": mean}, {"z": posterior @ values**2 - mean**2})


def hierarchical():
    """A global latent: all is one unit."""

    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("groups", len(x)):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        mu = numpyro.sample("mu", dist.Normal(0.6 * jnp.mean(x), 0.8))
        with numpyro.plate("groups", len(x)):
            numpyro.sample("z", dist.Normal((mu + x) / 2, 0.8))

    x = np.array([0.5, 1.5, -0.5], np.float32)
    effects = np.hstack([np.ones((4, 1)), np.vstack([np.zeros(3), np.eye(3)])])  # of mu and z, in own terms
    log_evidence, mean, cov = linear(effects @ effects.T, np.eye(4)[1:], np.eye(3), x)
    variance = np.diag(cov)
    means, variances = {"mu": mean[0], "z": mean[1:]}, {"mu": variance[0], "z": variance[1:]}
    return Case(model, guide, {}, (x,), log_evidence, means, variances)


def state_space():
    def model(x):
        def step(z, x):
            z = numpyro.sample("z", dist.Normal(0.9 * z, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(step, 0.0, x)

    def guide(x):
        def step(z, x):
            return numpyro.sample("z", dist.Normal(0.4 * z + 0.55 * x, 0.85)), None

        scan(step, 0.0, x)

    x = np.array([0.5, 1.5, -0.5, 0.3], np.float32)
    effects = np.array([[0.9 ** (t - s) if s <= t else 0.0 for s in range(4)] for t in range(4)])
    log_evidence, mean, cov = linear(effects @ effects.T, np.eye(4), np.eye(4), x)
    return Case(model, guide, {}, (x,), log_evidence, {"z": mean}, {"z": np.diag(cov)})


def branching():
    """One or two components that add up, for each datum; the second one is there in some particles only."""
    p = np.array([0.6, 0.4])

    def model(x):
        k = numpyro.sample("k", dist.Bernoulli(p[1]), infer={"branching": True})
        with numpyro.plate("components", 1 + int(k)):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(a.sum(), 1.0), obs=x)

    def guide(x):
        k = numpyro.sample("k", dist.Bernoulli(0.5), infer={"branching": True})
        with numpyro.plate("components", 1 + int(k)):
            numpyro.sample("a", dist.Normal(x / (2 + int(k)), 1.0))

    x = np.array([-1.0, 0.5, 2.0], np.float32)
    num = np.array([1.0, 2.0])
    joint = p * np.exp(log_normal(x[:, None], 0.0, num + 1))
    posterior = joint / joint.sum(axis=1, keepdims=True)
    loc, variance = x[:, None] / (num + 1), num / (num + 1)
    first = np.sum(posterior * loc, axis=1)
    first_variance = np.sum(posterior * (variance + loc**2), axis=1) - first**2
    means = {"k": posterior[:, 1], "a": np.stack([first, loc[:, 1]], axis=1)}
    variances = {"k": posterior[:, 1] * posterior[:, 0], "a": np.stack([first_variance, variance[1] + 0 * x], axis=1)}
    return Case(model, guide, {}, (x,), np.log(joint.sum(axis=1)), means, variances, {"data_axes": 0})


CASES = {f.__name__.replace("_", " "): f for f in (one_gaussian, two_gaussians, discrete, hierarchical, state_space)}
CASES |= {"branching": branching}


def key(number=0):
    return jax.random.key(number)
