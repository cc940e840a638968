"""Three cases in which Pyro's `ReweightedWakeSleep` and this package differ, each beside the exact answer.

    python -m pip install -e ".[pyro]"
    python benchmarks/pyro_differences.py

1. Two dependent reparameterised sites. Model: z1 ~ N(0.2, 1), z2 ~ N(z1, 1), x ~ N(z2, 1); guide: z1 ~ N(a, 1),
   z2 ~ N(0.7 z1, 1). With many particles wake-phi's gradient goes to that of KL(p(z | x) || q), a - E[z1 | x].
2. N data in a plate. Model: z ~ N(0, 1), x ~ N(z, 1/2) with all x = 1; guide: z ~ N(m, 1). For m = 0 the same
   gradient is -E[z | x] = -0.8 for each datum, whatever N.
3. A guide with a positional argument, in sleep. Model: z ~ N(0, 1), x ~ N(z, 1); guide: z ~ N(slope x, 1). The
   posterior has slope 1/2.
"""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as numpyro_dist
import optax
import pyro
import pyro.distributions as pyro_dist
import pyro.infer
import pyro.optim
import torch
from numpyro.infer import SVI

from rws_jax import ReweightedWakeSleep


def make_programs(ppl, dist, scalar):
    """The three models and guides, for either library."""

    def chain_model(x):
        z1 = ppl.sample("z1", dist.Normal(scalar(0.2), 1.0))
        z2 = ppl.sample("z2", dist.Normal(z1, 1.0))
        ppl.sample("x", dist.Normal(z2, 1.0), obs=x)

    def chain_guide(x):
        z1 = ppl.sample("z1", dist.Normal(ppl.param("a", scalar(0.5)), 1.0))
        ppl.sample("z2", dist.Normal(0.7 * z1, 1.0))

    def plate_model(x):
        with ppl.plate("data", len(x)):
            z = ppl.sample("z", dist.Normal(scalar(0.0), 1.0))
            ppl.sample("x", dist.Normal(z, 0.5), obs=x)

    def plate_guide(x):
        m = ppl.param("m", scalar(0.0))
        with ppl.plate("data", len(x)):
            ppl.sample("z", dist.Normal(m, 1.0))

    def sleep_model(x, observations=None):
        z = ppl.sample("z", dist.Normal(scalar(0.0), 1.0))
        ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    def sleep_guide(x, observations=None):
        ppl.sample("z", dist.Normal(ppl.param("slope", scalar(0.1)) * x, 1.0))

    return (chain_model, chain_guide), (plate_model, plate_guide), (sleep_model, sleep_guide)


PYRO = make_programs(pyro, pyro_dist, torch.tensor)
OURS = make_programs(numpyro, numpyro_dist, jnp.array)


def pyro_gradient(case, name, x, num_particles, num_repeats):
    """Mean of a parameter's gradient over repeats, and its standard error."""
    pyro.set_rng_seed(0)
    loss, grads = pyro.infer.ReweightedWakeSleep(num_particles=num_particles, max_plate_nesting=1), []
    for _ in range(num_repeats):
        pyro.clear_param_store()
        loss.loss_and_grads(*PYRO[case], torch.tensor(x))
        grads.append(pyro.param(name).grad.item())
    return mean_and_error(jnp.array(grads))


def our_gradient(case, name, start, x, num_particles, num_repeats):
    """The same here."""
    loss = ReweightedWakeSleep(num_particles=num_particles, control_variate=False)

    def gradient(rng_key):
        return loss.loss_and_grads(rng_key, {name: jnp.array(start)}, *OURS[case], jnp.array(x))[1][name]

    return mean_and_error(jax.lax.map(gradient, jax.random.split(jax.random.key(0), num_repeats)))


def mean_and_error(values):
    """Mean over repeats and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def slopes(num_steps=2000):
    """The third case after training, where the real datum is 3."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    options = {"num_particles": 10, "insomnia": 0.0}
    loss = pyro.infer.ReweightedWakeSleep(model_has_params=False, max_plate_nesting=1, **options)
    pyro_svi = pyro.infer.SVI(*PYRO[2], pyro.optim.Adam({"lr": 0.01}), loss=loss)
    for _ in range(num_steps):
        pyro_svi.step(torch.tensor(3.0))
    svi = SVI(*OURS[2], optax.adam(0.01), loss=ReweightedWakeSleep(**options))
    result = svi.run(jax.random.key(0), num_steps, 3.0, progress_bar=False)
    return pyro.param("slope").item(), float(result.params["slope"])


def main():
    """Print all three."""
    show = lambda label, pyro, ours, exact: print(f"{label:<56}{pyro:>16}{ours:>16}{exact:>8}")
    with_error = lambda pair: f"{pair[0]:.3f} ± {pair[1]:.3f}"
    show("", "Pyro", "rws_jax", "exact")
    pyro_one = pyro_gradient(0, "a", 1.3, 1000, 200)
    our_one = our_gradient(0, "a", 0.5, 1.3, 1000, 200)
    exact = 0.5 - (0.2 + (1.3 - 0.2) / 3.0)
    show("1. dependent sites: gradient, K = 1000", with_error(pyro_one), with_error(our_one), f"{exact:.3f}")
    for num_data in (1, 10, 100, 1000):
        x = [1.0] * num_data
        per_datum = lambda pair, n=num_data: with_error((pair[0] / n, pair[1] / n))
        pyro_one = per_datum(pyro_gradient(1, "m", x, 100, 200))
        our_one = per_datum(our_gradient(1, "m", 0.0, x, 100, 200))
        show(f"2. {num_data} data in a plate: gradient per datum, K = 100", pyro_one, our_one, "-0.800")
    show("3. positional data in sleep: slope", *map("{:.3f}".format, slopes()), "0.500")


if __name__ == "__main__":
    main()
