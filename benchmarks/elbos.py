"""NumPyro's objectives and `ReweightedWakeSleep` on one model of discrete latents, in one loop of NumPyro's `SVI`.

    python -m pip install -e ".[demo]" funsor
    python benchmarks/elbos.py

Model: a sigmoid belief network of 8 binary latents and 64 pixels on scikit-learn's handwritten digits, so small that
the evidence is a sum over 256 states. The guide is linear in the pixels. All objectives have the same start,
minibatches of 100, number of steps, particles and Adam at 3e-3.

Prints medians over seeds:

    evidence   log p(x) of held-out images, nats per image, exact; after a tenth of the steps, and after all
    cosine     of the guide's mean gradient with that of KL(p(z | x) || q), a sum over all states; for one batch
               and the same parameters for all objectives (those of rws after a tenth of the steps)
    noise      of the same gradient: root of the summed variances of its coordinates over the norm of its mean
    ms/step    of all objectives in turn, in one run; compilation is left out
"""

import argparse
import math
import time
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp
from numpyro.contrib.funsor import config_enumerate
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from sklearn.datasets import load_digits

from rws_jax import ReweightedWakeSleep

NUM_LATENTS, NUM_TRAIN, BATCH_SIZE, NUM_PARTICLES = 8, 1400, 100, 10
STATES = (jnp.arange(2**NUM_LATENTS)[:, None] >> jnp.arange(NUM_LATENTS)) & 1


def model(x):
    """Independent units, and pixels that depend on all of them."""
    prior = numpyro.param("prior", jnp.zeros(NUM_LATENTS))
    weight = numpyro.param("weight", lambda key: 0.5 * jax.random.normal(key, (NUM_LATENTS, 64)))
    bias = numpyro.param("bias", jnp.full(64, -1.0))
    with numpyro.plate("data", len(x)):
        z = [numpyro.sample(f"z{i}", dist.Bernoulli(logits=prior[i])) for i in range(NUM_LATENTS)]
        logits = bias + sum(z[i][..., None] * weight[i] for i in range(NUM_LATENTS))
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x):
    """One linear layer."""
    slope = numpyro.param("slope", jnp.zeros((64, NUM_LATENTS)))
    logits = (x - 0.5) @ slope + numpyro.param("offset", jnp.zeros(NUM_LATENTS))
    with numpyro.plate("data", len(x)):
        for i in range(NUM_LATENTS):
            numpyro.sample(f"z{i}", dist.Bernoulli(logits=logits[:, i]))


# name -> model, guide, loss
OBJECTIVES = {
    "rws, wake": (model, guide, ReweightedWakeSleep(NUM_PARTICLES)),
    "rws, wake and sleep": (model, guide, ReweightedWakeSleep(NUM_PARTICLES, insomnia=0.5)),
    "Trace_ELBO": (model, guide, Trace_ELBO(NUM_PARTICLES)),
    "TraceGraph_ELBO": (model, guide, TraceGraph_ELBO(NUM_PARTICLES)),
    "RenyiELBO(0)": (model, guide, RenyiELBO(0, NUM_PARTICLES)),
    "TraceEnum_ELBO": (config_enumerate(model), lambda x: None, TraceEnum_ELBO()),
}


def images():
    """Training and held-out images, black where darker than 7 of 16."""
    x = np.random.default_rng(0).permutation(load_digits().data > 7)
    return jnp.asarray(x[:NUM_TRAIN], float), jnp.asarray(x[NUM_TRAIN:], float)


def evidence(params, x):
    """Log p(x), nats per image, by summing over all states."""
    return logsumexp(log_joint(params, x), axis=1).mean()


def log_joint(params, x):
    """Log p(x, z) of all states, shape ``(images, states)``."""
    log_prior = dist.Bernoulli(logits=params["prior"]).log_prob(STATES).sum(-1)
    pixels = dist.Bernoulli(logits=params["bias"] + STATES @ params["weight"])
    return log_prior + pixels.log_prob(x[:, None]).sum(-1)


def make(name):
    """SVI of one objective."""
    programs = OBJECTIVES[name]
    return SVI(programs[0], programs[1], optax.adam(3e-3), loss=programs[2])


def block(svi, x, state, rng_key, num_steps):
    """Some steps of training, each on a minibatch of its own."""

    def body(state, index):
        batch = jax.random.choice(jax.random.fold_in(rng_key, index), x, (BATCH_SIZE,), replace=False)
        return svi.update(state, batch)

    return jax.lax.scan(body, state, jnp.arange(num_steps))[0]


@partial(jax.jit, static_argnums=(0, 2))
def train(name, x, num_steps, seed):
    """Parameters after training."""
    svi = make(name)
    init_key, data_key = jax.random.split(jax.random.key(seed))
    return svi.get_params(block(svi, x, svi.init(init_key, x[:BATCH_SIZE]), data_key, num_steps))


@partial(jax.jit, static_argnums=0)
def gradient(name, params, x, num_repeats=2000):
    """Cosine of the guide's mean gradient with the exact one, and noise; NaN where the mean is not told from zero."""
    own = {name: params[name] for name in ("slope", "offset")}

    def loss(own, rng_key):
        *programs, objective = OBJECTIVES[name]
        return objective.loss(rng_key, {**params, **own}, *programs, x)

    def exact_loss(own):
        log_q = dist.Bernoulli(logits=(x - 0.5) @ own["slope"] + own["offset"]).log_prob(STATES[:, None]).sum(-1)
        return -jnp.sum(jax.nn.softmax(log_joint(params, x), axis=1).T * log_q)

    grads = jax.lax.map(partial(jax.grad(loss), own), jax.random.split(jax.random.key(1), num_repeats))
    grads = jax.vmap(lambda tree: ravel_pytree(tree)[0])(grads)
    mean, variance, exact = grads.mean(0), grads.var(0).sum(), ravel_pytree(jax.grad(exact_loss)(own))[0]
    bias = variance / num_repeats  # of the mean's squared length
    square = mean @ mean - bias
    values = mean @ exact / jnp.sqrt(square * (exact @ exact)), jnp.sqrt(variance / square)
    return jnp.where(square > bias, jnp.array(values), jnp.nan)


def milliseconds(names, x, num_steps=200, num_rounds=5):
    """Time of a step, median over rounds that take all objectives in turn."""
    runs, seconds = {}, {name: [] for name in names}
    for name in names:
        svi = make(name)
        state, key = svi.init(jax.random.key(0), x[:BATCH_SIZE]), jax.random.key(1)
        runs[name] = partial(
            jax.jit(partial(block, svi, x, num_steps=num_steps)).lower(state, key).compile(), state, key
        )
    for _ in range(num_rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(s)) / num_steps for name, s in seconds.items()}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=10_000)
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Currently, SVI with")  # that some do not support discrete latents is shown here
    x, held_out = images()
    tenth = max(args.num_steps // 10, 1)
    early = train("rws, wake", x, tenth, 0)
    time_of = milliseconds(args.objectives, x)
    print(f"K = {NUM_PARTICLES}, {args.num_seeds} seeds, {args.num_steps} steps of {BATCH_SIZE} images")
    print(f"{'objective':<22}{'evidence':>18}{'cosine':>8}{'noise':>8}{'ms/step':>9}")
    for name in args.objectives:
        values = [
            np.median([evidence(train(name, x, num_steps, seed), held_out) for seed in range(args.num_seeds)])
            for num_steps in (tenth, args.num_steps)
        ]
        cosine, noise = (math.nan, math.nan) if name == "TraceEnum_ELBO" else gradient(name, early, x[:BATCH_SIZE])
        print(f"{name:<22}{values[0]:9.2f}{values[1]:9.2f}{cosine:8.2f}{noise:8.2f}{time_of[name]:9.2f}", flush=True)


if __name__ == "__main__":
    main()
