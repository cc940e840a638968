"""Guides of models with scans: what a step reads of the data, of earlier draws, and of other series."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import seed, substitute, trace

import rws_jax
from tests.guides.cases import SMALL, generic, weights_of
from tests.models import rows
from tests.posterior.exact import linear

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")

X = jnp.array([0.5, -1.2, 0.3, 2.0])


def compiled(model, *args, **options):
    """A guide with generic weights, made for these arguments."""
    guide = rws_jax.compile_guide(model, **SMALL | options)
    return guide, generic(weights_of(guide, *args))


def parameters(guide, numbers, site, *args, **latents):
    """The means of a proposal's components, `(*batch, numbers)`."""
    with seed(rng_seed=1), substitute(data={**numbers, **latents}):
        sites = trace(guide).get_trace(*args)
    means = sites[site]["fn"].means
    return means.reshape(*means.shape[:-2], -1)


def reads(guide, numbers, site, *args, **latents):
    """Which numbers of the first argument, and of each latent, each element of a site reads."""
    run = lambda x, latents: parameters(guide, numbers, site, x, *args[1:], **latents)
    of_x, of_latents = jax.jit(jax.jacobian(run, argnums=(0, 1)))(args[0], latents)
    given = {"x": args[0], **latents}
    read = {}
    for name, jacobian in {"x": of_x, **of_latents}.items():
        rank = jnp.ndim(given[name])
        read[name] = np.asarray(jnp.any(jacobian != 0, axis=jacobian.ndim - rank - 1))
    return read


def chain(reverse=False):
    def model(x):
        def step(z, x):
            z = numpyro.sample("z", dist.Normal(0.9 * z, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        last, _ = scan(step, 0.0, x, reverse=reverse)
        numpyro.sample("after", dist.Normal(last, 1.0))

    return model


Z = {"z": jnp.array([0.1, -0.7, 0.4, 1.1]), "after": jnp.array(0.3)}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_step_reads_the_data_from_there_on_and_the_draws_before(reverse):
    """What was drawn before stands for the data before."""
    guide, numbers = compiled(chain(reverse), X)
    read = reads(guide, numbers, "z", X, **Z)
    later, earlier = np.triu(np.ones((4, 4), bool)), np.tril(np.ones((4, 4), bool), -1)
    assert np.all(read["x"] == (later.T if reverse else later))
    # NumPyro takes substituted values in the order of steps, so that here a reversed scan has them back to front.
    assert np.all(read["z"] == (earlier[::-1] if reverse else earlier))
    assert not read["after"].any()
    assert reads(guide, numbers, "after", X, **Z)["z"].all()


@pytest.mark.slow
def test_steps_do_not_read_each_other_where_proposals_are_independent():
    guide, numbers = compiled(chain(), X, autoregressive=False)
    read = reads(guide, numbers, "z", X, **Z)
    assert np.all(read["x"] == np.triu(np.ones((4, 4), bool)))
    assert not read["z"].any()


def in_series(x):
    """(T, N): series that are independent of one another."""

    def step(z, x):
        with numpyro.plate("series", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.9 * z, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    scan(step, jnp.zeros(x.shape[1]), x)


def test_series_in_a_plate_do_not_read_each_other():
    x = jnp.stack([X, X[::-1], -X], axis=1)
    guide, numbers = compiled(in_series, x)
    read = reads(guide, numbers, "z", x, z=0.1 + 0.5 * x)
    own = np.eye(3, dtype=bool)[None, :, None, :]
    later, earlier = np.triu(np.ones((4, 4), bool)), np.tril(np.ones((4, 4), bool), -1)
    assert np.all(read["x"] == (later[:, None, :, None] & own))
    assert np.all(read["z"] == (earlier[:, None, :, None] & own))


@pytest.mark.parametrize("shape", [(4, 1), (4, 50), (9, 3)])
def test_more_series_and_longer_ones_have_the_same_weights(shape):
    x = jnp.stack([X, X[::-1], -X], axis=1)
    guide, numbers = compiled(in_series, x)
    of_first = lambda x: parameters(guide, numbers, "z", x, z=0.1 + 0.5 * x)[:, 0]
    other = jnp.resize(X, shape[::-1]).T.at[:4, 0].set(x[:, 0])
    assert of_first(other).shape[0] == shape[0]
    if shape[0] == 4:
        np.testing.assert_allclose(of_first(other), of_first(x), rtol=1e-4)


def two_chains(x):
    def first(z, x):
        return numpyro.sample("z", dist.Normal(0.9 * z, 1.0)), None

    def second(w, x):
        w = numpyro.sample("w", dist.Normal(0.5 * w, 1.0))
        numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
        return w, None

    last, _ = scan(first, 0.0, x)
    scan(second, last, x)


def test_a_second_scan_reads_what_the_first_has_drawn():
    guide, numbers = compiled(two_chains, X)
    assert set(numbers["guide"]["scans"]) == {"scan", "scan 2"}
    latents = {"z": Z["z"], "w": -Z["z"]}
    read = reads(guide, numbers, "w", X, **latents)
    assert read["z"].all()
    assert np.all(read["x"] == np.triu(np.ones((4, 4), bool)))


def scan_in_scan(x):
    def outer(z, row):
        z = numpyro.sample("z", dist.Normal(z, 1.0))

        def inner(w, x):
            w = numpyro.sample("w", dist.Normal(w, 1.0))
            numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
            return w, None

        scan(inner, z, row)
        return z, None

    scan(outer, 0.0, x)


def switching(x):
    """A cond within a scan."""

    def step(z, x):
        high = lambda z: numpyro.sample("z", dist.Normal(0.5 * z, 1.0))
        low = lambda z: numpyro.sample("z", dist.Normal(0.5 * z, 1.0))
        z = cond(z > 0, high, low, z)
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    scan(step, 0.1, x)


def in_front(x):
    """A latent before the scan, which the steps read."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

    def step(z, x):
        z = numpyro.sample("z", dist.Normal(0.5 * z + mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    scan(step, 0.0, x)


def evidence_of(effects, num):
    """Of data that are the last `num` of Gaussians with these effects of independent noise, with noise of their own."""
    return linear(effects @ effects.T, np.eye(len(effects))[-num:], np.eye(num), np.asarray(X)[:num])[0]


DECAY = np.array([[0.5 ** (t - s) if s <= t else 0.0 for s in range(4)] for t in range(4)])
NESTED = np.array([[1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1.0]])
EVIDENCE = {
    "in front": (in_front, X, evidence_of(np.hstack([DECAY.sum(axis=1, keepdims=True), DECAY]), 4)),
    "scan in scan": (scan_in_scan, X.reshape(2, 2), evidence_of(NESTED, 4)),
    "in series": (in_series, X.reshape(2, 2), None),
    "switching": (switching, X, None),
}


@pytest.mark.parametrize("name", rows(EVIDENCE, fast=set()))
def test_the_mean_weight_is_the_exact_evidence(name):
    """Within five standard errors; the last two have one chain's evidence, but for where they start."""
    model, x, evidence = EVIDENCE[name]
    guide, numbers = compiled(model, x)
    found = rws_jax.importance_sample(jax.random.key(1), numbers, model, guide, x, num_particles=20_000).log_evidence()
    if name == "in series":
        cov = np.array([[1.0, 0.9], [0.9, 1.81]])
        evidence = np.array([linear(cov, np.eye(2), np.eye(2), np.asarray(x)[:, i])[0] for i in range(2)])
    elif name == "switching":
        mean = 0.1 * 0.5 ** np.arange(1, 5)
        evidence = linear(DECAY @ DECAY.T, np.eye(4), np.eye(4), np.asarray(x) - mean)[0]
    np.testing.assert_array_less(np.abs(found.value - evidence), 5.0 * found.standard_error + 1e-5)
    assert np.all(found.standard_error < 0.3)
