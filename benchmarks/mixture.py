"""A mixture with a branch for each of 20 components: do guides lose branches? (Le et al. 2019, arXiv 1805.10469.)

    python benchmarks/mixture.py --start far --num-particles 2 --num-seeds 5

Model: z ~ Categorical(softmax(theta / 2)), x | z ~ Normal(10 z, 5), where only theta is learned. The truth is
p(z = c) = (c + 5) / 290; training starts with the mass at the wrong end ("far") or uniform ("near"). The guide is a
network of two layers of 16 units on raw x. Each step sees 100 fresh data; Adam at 1e-3 trains both programs.

Prints medians over seeds, evaluated at the end of training:

    p-error    || p_theta(z) - p(z) ||_2
    q-error    mean over 100 fixed x of || q_phi(z | x) - p(z | x) ||_2, with the exact posterior of the truth
    grad std   of the guide's gradient at these parameters, for a batch of 100 (root of the summed variances of its
               coordinates), with the control variate and, at the same parameters, without it
    ms/step    wall time of all seeds together, divided by steps and seeds; compilation is left out
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.stats import norm

import rws_jax

NUM_BRANCHES, BATCH_SIZE = 20, 100
TRUTH = (jnp.arange(NUM_BRANCHES) + 5.0) / 290.0
STARTS = {"far": 2.0 * jnp.arange(NUM_BRANCHES)[::-1], "near": jnp.ones(NUM_BRANCHES)}

METHODS = {
    "sleep": {"insomnia": 0.0},
    "wake, plain": {"control_variate": False},
    "wake": {},
    "defensive, plain": {"defensive": 0.2, "control_variate": False},
    "defensive": {"defensive": 0.2},
}


def model(x, start=STARTS["far"]):
    """The branch of each datum, and the datum."""
    logits = numpyro.param("logits", start) / 2.0
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("x", dist.Normal(10.0 * z, 5.0), obs=x)


def linear(name, x, num_out):
    """A linear layer, started as PyTorch does."""
    bound = x.shape[-1] ** -0.5
    uniform = lambda shape: lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    weight = numpyro.param(f"{name}_weight", uniform((x.shape[-1], num_out)))
    return x @ weight + numpyro.param(f"{name}_bias", uniform((num_out,)))


def guide(x):
    """A network that tells the branch from the datum."""
    hidden = jnp.tanh(linear("q1", x[:, None], 16))
    hidden = jnp.tanh(linear("q2", hidden, 16))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(logits=linear("q3", hidden, NUM_BRANCHES)))


def uniform_guide(x):
    """Proposes every branch."""
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Categorical(jnp.full((len(x), NUM_BRANCHES), 1.0 / NUM_BRANCHES)))


def draw_data(rng_key):
    """A batch from the truth."""
    z_key, x_key = jax.random.split(rng_key)
    z = jax.random.choice(z_key, NUM_BRANCHES, (BATCH_SIZE,), p=TRUTH)
    return 10.0 * z + 5.0 * jax.random.normal(x_key, (BATCH_SIZE,))


def make(method, start, num_particles):
    """The training step of one method; sleep draws as many values in all as wake does."""
    options = METHODS[method] | ({"defensive_guide": uniform_guide} if "defensive" in METHODS[method] else {})
    return rws_jax.make_step(partial(model, start=STARTS[start]), guide, num_particles=num_particles, **options)


def errors(theta, phi, x):
    """p-error and q-error."""
    site = numpyro.handlers.trace(numpyro.handlers.seed(numpyro.handlers.substitute(guide, phi), 0)).get_trace(x)["z"]
    log_joint = jnp.log(TRUTH) + norm.logpdf(x[:, None], 10.0 * jnp.arange(NUM_BRANCHES), 5.0)
    q_error = jnp.linalg.norm(site["fn"].probs - jax.nn.softmax(log_joint), axis=-1).mean()
    return jnp.linalg.norm(jax.nn.softmax(theta["logits"] / 2.0) - TRUTH), q_error


def train(method, start, num_particles, num_steps, rng_key):
    """Parameters after training, by one seed."""
    rws = make(method, start, num_particles)
    init_key, data_key = jax.random.split(rng_key)

    def body(state, index):
        return rws.step(state, draw_data(jax.random.fold_in(data_key, index)))[0], None

    state = rws.init(init_key, draw_data(data_key))
    state, _ = jax.lax.scan(body, state, jnp.arange(num_steps))
    return state.plain[:2]


def gradient_std(method, num_particles, x, control_variate, theta, phi, num_repeats=500):
    """Standard deviation of the guide's gradient over repeated draws for the same data."""
    seed, options = numpyro.handlers.seed, METHODS[method] | {"control_variate": control_variate}

    def loss(phi, rng_key):
        keys = jax.random.split(rng_key, 3)
        programs = seed(model, keys[0]), seed(guide, keys[1])
        if method == "sleep":
            return rws_jax.sleep_phi_loss(theta, phi, *programs, x, num_particles=num_particles)
        extra = {"defensive_guide": seed(uniform_guide, keys[2])} if "defensive" in options else {}
        return rws_jax.wake_phi_loss(theta, phi, *programs, x, num_particles=num_particles, **options, **extra)

    grads = jax.vmap(jax.grad(loss), (None, 0))(phi, jax.random.split(jax.random.key(1), num_repeats))
    return jnp.sqrt(sum(jnp.sum(jnp.var(leaf, axis=0)) for leaf in jax.tree.leaves(grads)))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", choices=STARTS, default="far")
    parser.add_argument("--num-particles", type=int, default=2)
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--num-steps", type=int, default=100_000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = parser.parse_args()
    x = draw_data(jax.random.key(123))
    print(f"start {args.start}, K = {args.num_particles}, {args.num_seeds} seeds, {args.num_steps} steps")
    print(f"{'method':<18}{'p-error':>9}{'q-error':>9}{'grad std':>10}{'without':>10}{'ms/step':>9}")
    for method in args.methods:
        keys = jax.vmap(jax.random.key)(jnp.arange(args.num_seeds))
        run = jax.jit(jax.vmap(partial(train, method, args.start, args.num_particles, args.num_steps)))
        run = run.lower(keys).compile()
        start = time.perf_counter()
        theta, phi = jax.block_until_ready(run(keys))
        milliseconds = 1e3 * (time.perf_counter() - start) / args.num_steps / args.num_seeds
        p_error, q_error = jax.vmap(errors, (0, 0, None))(theta, phi, x)
        std = lambda control_variate, method=method, theta=theta, phi=phi: jax.jit(
            jax.vmap(partial(gradient_std, method, args.num_particles, x, control_variate))
        )(theta, phi)
        without = "-" if method == "sleep" else f"{jnp.median(std(False)):.1f}"
        medians = f"{jnp.median(p_error):9.4f}{jnp.median(q_error):9.4f}{jnp.median(std(True)):10.1f}{without:>10}"
        print(f"{method:<18}{medians}{milliseconds:9.3f}", flush=True)


if __name__ == "__main__":
    main()
