"""Models that a guide is compiled from, each with its evidence in closed form or by enumeration."""

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import mask, scale, seed, trace
from scipy.special import betaln, gammaln
from scipy.stats import nbinom

import rws_jax
from tests.posterior.exact import linear, log_normal


class Case(NamedTuple):
    """A model with its arguments, and what is exact."""

    model: Callable
    args: tuple
    log_evidence: np.ndarray  # of shape ``units``
    theta: Mapping = MappingProxyType({})
    options: Mapping = MappingProxyType({})  # of a run of particles


SMALL = {"hidden": 5, "components": 2}


def compiled(case: Case, **options):
    """A guide, and parameters of both programs: those of the guide are not its first ones, but generic."""
    guide = rws_jax.compile_guide(case.model, **SMALL | options)
    return guide, {**case.theta, **generic(weights_of(guide, *datum_of(case)))}


def datum_of(case):
    """The arguments of one run."""
    return tuple(x[0] for x in case.args) if case.options.get("data_axes") == 0 else case.args


def weights_of(guide, *args, rng_key=None, **kwargs):
    """The first weights of a guide."""
    with seed(rng_seed=jax.random.key(0) if rng_key is None else rng_key):
        sites = trace(guide).get_trace(*args, **kwargs)
    return {name: site["value"] for name, site in sites.items() if site["type"] == "param" and name == "guide"}


def generic(tree, size=0.3):
    """Weights moved away from where they start, the same way each time; shift and scale stay."""
    rng = np.random.default_rng(3)

    def moved(path, leaf):
        is_constant = jax.tree_util.keystr(path).endswith(("['shift']", "['scale']"))
        return leaf if is_constant else leaf + jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(moved, tree)


def gaussian():
    def model(x):
        mu = numpyro.param("mu", 0.5)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = np.array([-1.0, 0.5, 2.0], np.float32)
    return Case(model, (x,), log_normal(x, 0.5, 2.0), {"mu": jnp.array(0.5)})


LEAK, EFFECTS, CAUSES = 0.1, np.array([0.9, 1.6, 0.5]), np.array([0.3, 0.2, 0.4])


def noisy_or_model(x):
    """Causes without a plate, each with a prior that varies; several effects of each datum would only cost time."""
    with numpyro.plate("data", len(x)):
        z = [numpyro.sample(f"z{i}", dist.Bernoulli(p)) for i, p in enumerate(CAUSES)]
        off = LEAK + sum(e * z for e, z in zip(EFFECTS, z, strict=True))
        numpyro.sample("x", dist.Bernoulli(1.0 - jnp.exp(-off)), obs=x)


NOISY_OR_STATES = np.array(list(itertools.product([0, 1], repeat=3)))


def noisy_or():
    x = np.array([0.0, 1.0], np.float32)
    p = np.prod(np.where(NOISY_OR_STATES == 1, CAUSES, 1 - CAUSES), axis=1)
    on = 1 - np.exp(-LEAK - NOISY_OR_STATES @ EFFECTS)
    return Case(noisy_or_model, (x,), np.log(np.where(x[:, None] == 1, on, 1 - on) @ p))


def categories():
    """Categories, a whole number with bounds, and counts."""
    p, rate = np.array([0.2, 0.5, 0.3]), 1.5

    def model(x):
        with numpyro.plate("data", len(x)):
            a = numpyro.sample("a", dist.Categorical(jnp.array(p)))
            b = numpyro.sample("b", dist.Binomial(2, 0.4))
            c = numpyro.sample("c", dist.Poisson(rate))
            numpyro.sample("x", dist.Normal(0.0 + a - b + 0.5 * c, 1.0), obs=x)

    x = np.array([-1.0, 0.5, 2.0], np.float32)
    a, b, c = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(3), np.arange(30), indexing="ij"))
    weight = p[a] * np.array([0.36, 0.48, 0.16])[b] * np.exp(c * np.log(rate) - rate - gammaln(c + 1.0))
    return Case(model, (x,), np.log(np.exp(log_normal(x[:, None], a - b + 0.5 * c, 1.0)) @ weight))


def conjugates():
    """Gamma, Beta and Dirichlet latents, of one datum each."""

    def model(counts, successes, chosen):
        with numpyro.plate("data", len(counts)):
            rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
            p = numpyro.sample("p", dist.Beta(2.0, 3.0))
            probs = numpyro.sample("probs", dist.Dirichlet(jnp.array([1.0, 2.0, 0.5])))
            numpyro.sample("counts", dist.Poisson(rate), obs=counts)
            numpyro.sample("successes", dist.Binomial(4, p), obs=successes)
            numpyro.sample("chosen", dist.Categorical(probs), obs=chosen)

    counts, successes, chosen = np.array([0, 3]), np.array([4, 1]), np.array([1, 2])
    of_counts = nbinom.logpmf(counts, 2, 0.5)
    choose = gammaln(5.0) - gammaln(successes + 1.0) - gammaln(5.0 - successes)
    of_successes = choose + betaln(2 + successes, 7 - successes) - betaln(2, 3)
    of_chosen = np.log(np.array([1.0, 2.0, 0.5])[chosen] / 3.5)
    return Case(model, (counts, successes, chosen), of_counts + of_successes + of_chosen)


def state_space():
    def model(x):
        mu = numpyro.param("mu", 0.0)

        def step(z, x):
            z = numpyro.sample("z", dist.Normal(0.9 * z + mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(step, 0.0, x)

    x = np.array([0.5, 1.5, -0.5, 0.3], np.float32)
    effects = np.array([[0.9 ** (t - s) if s <= t else 0.0 for s in range(4)] for t in range(4)])
    return Case(model, (x,), linear(effects @ effects.T, np.eye(4), np.eye(4), x)[0], {"mu": jnp.array(0.0)})


def either():
    """A cond."""

    def model(x):
        branch = numpyro.sample("branch", dist.Bernoulli(0.4))
        high = lambda _: numpyro.sample("z", dist.Normal(2.0, 1.0))
        low = lambda _: numpyro.sample("z", dist.Normal(-1.0, 0.5))
        z = cond(branch == 1, high, low, None)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = np.float32(1.3)
    return Case(
        model, (x,), np.logaddexp(np.log(0.4) + log_normal(x, 2.0, 2.0), np.log(0.6) + log_normal(x, -1.0, 1.25))
    )


def branching():
    """Python's `if`: one latent or two, for each datum."""

    def model(x):
        mu = numpyro.param("mu", 0.0)
        k = numpyro.sample("k", dist.Bernoulli(0.4), infer={"branching": True})
        total = numpyro.sample("a", dist.Normal(mu, 1.0))
        if k:
            total = total + numpyro.sample("b", dist.Normal(1.0, 1.0))
        numpyro.sample("x", dist.Normal(total, 1.0), obs=x)

    x = np.array([-1.0, 0.5, 2.0], np.float32)
    joint = np.log(0.6) + log_normal(x, 0.0, 2.0), np.log(0.4) + log_normal(x, 1.0, 3.0)
    return Case(model, (x,), np.logaddexp(*joint), {"mu": jnp.array(0.0)}, {"data_axes": 0})


def vectors():
    """No plate: a vector without a plate, one that is an event, and one with correlations."""

    def model(x):
        a = numpyro.sample("a", dist.Normal(jnp.zeros(2), 1.0))
        b = numpyro.sample("b", dist.Normal(a, 1.0).to_event(1))
        cov = jnp.array([[1.0, 0.5], [0.5, 1.0]])
        c = numpyro.sample("c", dist.MultivariateNormal(b, cov))
        numpyro.sample("x", dist.Normal(c, 1.0).to_event(1), obs=x)

    x = np.array([0.7, -1.2], np.float32)
    cov = np.array([[4.0, 0.5], [0.5, 4.0]])
    return Case(model, (x,), -0.5 * (x @ np.linalg.solve(cov, x) + np.linalg.slogdet(2 * np.pi * cov)[1]))


def masked():
    """Each datum with a latent of its own, one of which is not there."""

    def model(x, there):
        with numpyro.plate("data", len(x)), mask(mask=there):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, there = np.array([-1.0, 0.5, 2.0], np.float32), np.array([True, False, True])
    return Case(model, (x, there), np.where(there, log_normal(x, 0.0, 2.0), 0.0))


def repeated():
    """A sample shape."""

    def model(x):
        z = numpyro.sample("z", dist.Normal(0.5, 1.0), sample_shape=(3,))
        numpyro.sample("x", dist.Normal(jnp.sum(z), 1.0), obs=x)

    x = np.float32(0.3)
    return Case(model, (x,), log_normal(x, 1.5, 4.0))


def minibatch():
    """A third of the data, whose rows are known to the caller."""

    def model(x):
        mu = numpyro.param("mu", 0.5)
        with numpyro.plate("data", 9, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = np.array([-1.0, 0.5, 2.0], np.float32)
    return Case(model, (x,), log_normal(x, 0.5, 2.0), {"mu": jnp.array(0.5)})


def tempered():
    """A latent whose prior counts twice in the model; the guide's density counts once."""

    def model(x):
        with scale(scale=2.0):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = np.float32(0.8)
    z = np.linspace(-12.0, 12.0, 4001)
    integrand = np.exp(2 * log_normal(z, 0.0, 1.0) + log_normal(x, z, 1.0))
    return Case(model, (x,), np.log(np.sum(integrand) * (z[1] - z[0])))


def hierarchical():
    """A global latent, those of groups, and observations within groups."""

    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("groups", x.shape[1]):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            with numpyro.plate("observations", x.shape[0]):
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = np.array([[0.5, 1.5, -0.5], [0.2, 1.0, 0.1]], np.float32)
    effects = np.hstack([np.ones((3, 1)), np.eye(3)])
    of_data = np.vstack([np.eye(3), np.eye(3)])
    evidence = linear(effects @ effects.T, of_data, np.eye(6), x.ravel())[0]
    return Case(model, (x,), evidence)


CASES = {
    f.__name__.replace("_", " "): f
    for f in (
        gaussian, noisy_or, categories, conjugates, state_space, either, branching, vectors, masked, repeated,
        minibatch, tempered, hierarchical,
    )
}  # fmt: skip
