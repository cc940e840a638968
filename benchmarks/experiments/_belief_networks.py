"""Sigmoid belief networks with one layer of few hidden units, so that log p(x) is a sum over all of their states.

They are trained as in J. Bornschein and Y. Bengio, Reweighted Wake-Sleep (arXiv 1406.2751): by wake and sleep, by
either alone, and beside them by two score-function estimators of bounds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.nn import softplus
from jax.nn.initializers import glorot_uniform
from jax.scipy.special import logsumexp
from numpyro.infer import SVI, TraceGraph_ELBO

import rws_jax

METHODS = {
    "wake and sleep": {"insomnia": 0.5},
    "wake": {},
    "sleep": {"insomnia": 0.0},
    "VIMCO": {"gradient": "vimco"},
    "score function": None,  # NumPyro's TraceGraph_ELBO
}


def programs(num_hidden, num_pixels, pixel_start, prior_start):
    """The network, whose pixels and hidden units start with these logits, and a guide of one linear layer."""

    def model(images):
        prior = numpyro.param("prior", jnp.full(num_hidden, prior_start))
        with numpyro.plate("data", len(images)):
            h = numpyro.sample("h", dist.Bernoulli(logits=prior).to_event(1))
            logits = affine("p", h, num_pixels, pixel_start)
            numpyro.sample("images", dist.Bernoulli(logits=logits).to_event(1), obs=images)

    def guide(images):
        with numpyro.plate("data", len(images)):
            numpyro.sample("h", dist.Bernoulli(logits=affine("q", images, num_hidden)).to_event(1))

    return model, guide


def affine(name, x, size, start=0.0):
    """A linear layer with parameters of this name."""
    weight = numpyro.param(f"{name}_weight", lambda key: glorot_uniform()(key, (x.shape[-1], size)))
    return x.astype(float) @ weight + numpyro.param(f"{name}_bias", jnp.full(size, start))


def trained(method, model, guide, draw, rng_key, num_particles, num_steps, learning_rate):
    """Parameters after training on the batches that ``draw(rng_key)`` returns; the rate falls over the last half."""
    half = num_steps // 2
    falling = optax.cosine_decay_schedule(learning_rate, num_steps - half)
    adam = optax.adam(optax.join_schedules([optax.constant_schedule(learning_rate), falling], [half]))
    init_key, data_key = jax.random.split(rng_key)
    keys, first = jax.random.split(data_key, num_steps), draw(data_key)
    if METHODS[method] is None:
        svi = SVI(model, guide, adam, TraceGraph_ELBO(num_particles))
        step, init, get_params = svi.update, svi.init, svi.get_params
    else:
        optimizers = {"theta_optimizer": adam, "phi_optimizer": adam}
        rws = rws_jax.make_step(model, guide, num_particles=num_particles, **optimizers, **METHODS[method])
        step, init, get_params = rws.step, rws.init, lambda state: rws.get_params(state, first)
    state, _ = jax.lax.scan(lambda state, key: (step(state, draw(key))[0], None), init(init_key, first), keys)
    return get_params(state)


def log_evidence(params, images, chunk=1024):
    """Exact log p(x) of each image: a sum over all states of the hidden units, some at a time."""
    places = 2 ** np.arange(len(params["prior"]))

    def of_chunk(begin):
        h = ((begin + jnp.arange(chunk))[:, None] // places % 2).astype(float)
        logits = h @ params["p_weight"] + params["p_bias"]
        log_h = h @ params["prior"] - softplus(params["prior"]).sum() - softplus(logits).sum(axis=1)
        return logsumexp(images @ logits.T + log_h, axis=1)

    return logsumexp(jax.lax.map(of_chunk, jnp.arange(0, 2 ** len(places), chunk)), axis=0)


def table(runs, columns):
    """A row for each method: medians over seeds, and the least and the most."""
    rows = [
        f"| {' | '.join(['method', *(f'K = {k}' for k in columns)])} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in METHODS:
        cells = []
        for num_particles in columns:
            found = [r["nll"] for r in runs if (r["method"], r["num_particles"]) == (method, num_particles)]
            cells += [f"{np.median(found[0]):.3f} ({min(found[0]):.3f} to {max(found[0]):.3f})" if found else ""]
        rows.append(f"| {' | '.join([method, *cells])} |")
    return rows
