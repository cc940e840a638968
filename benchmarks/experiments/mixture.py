"""A mixture with a branch for each of 20 components: which methods lose branches? (Le et al. 2019, arXiv 1805.10469.)

Model: z ~ Categorical(softmax(theta / 2)), x | z ~ Normal(10 z, 5), where only theta is learned. The truth is
p(z = c) = (c + 5) / 290; training starts with the mass at the wrong end ("far") or uniform ("near"). The guide is a
network of two layers of 16 units on raw x. Each step sees 100 fresh data; Adam at 1e-3 trains both programs.

Numbers are taken 41 times along training, for each seed:

    p_error    || p_theta(z) - p(z) ||_2
    q_error    mean over 100 fixed x of || q_phi(z | x) - p(z | x) ||_2, with the exact posterior of the truth
    grad_std   of the gradient of the guide's parameters at these parameters, for these 100 x: the root of the summed
               variances of its coordinates over 100 repeated draws

and `milliseconds` is the processor time of a training step of all seeds together, divided by the number of seeds:
median over the 40 parts of training, without compilation.
"""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.stats import norm
from numpyro.infer import SVI, TraceGraph_ELBO

import rws_jax

NUM_BRANCHES, BATCH_SIZE, NUM_PARTS = 20, 100, 40
TRUTH = (jnp.arange(NUM_BRANCHES) + 5.0) / 290.0
STARTS = {"far": 2.0 * jnp.arange(NUM_BRANCHES)[::-1], "near": jnp.ones(NUM_BRANCHES)}


class Categorical(dist.CategoricalLogits):
    """NumPyro's, but drawn by one uniform number in place of 20 Gumbel ones, which would take most of a step's time."""

    def sample(self, key, sample_shape=()):
        """The number of cumulated probabilities that the uniform number exceeds."""
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape, 1))
        return jnp.sum(u >= jnp.cumsum(self.probs, axis=-1)[..., :-1], axis=-1)


def model(x, start=STARTS["far"]):
    """The branch of each datum, and the datum."""
    logits = numpyro.param("logits", start) / 2.0
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", Categorical(logits))
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
        numpyro.sample("z", Categorical(linear("q3", hidden, NUM_BRANCHES)))


def uniform_guide(x):
    """Proposes every branch."""
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", Categorical(jnp.zeros((len(x), NUM_BRANCHES))))


DEFENSIVE = {"defensive": 0.2, "defensive_guide": uniform_guide}
METHODS = {
    "sleep": {"insomnia": 0.0},
    "wake": {},
    "wake, plain": {"control_variate": False},
    "defensive wake": DEFENSIVE,
    "defensive wake, plain": DEFENSIVE | {"control_variate": False},
    "VIMCO": {"gradient": "vimco"},
    "REINFORCE": None,
}
CELLS = [("far", 2), ("far", 5), ("far", 10), ("far", 20), ("near", 2)]  # starts, and numbers of particles
SETTINGS = [
    {"start": start, "num_particles": k, "method": method, "num_seeds": 5, "num_steps": 100_000}
    for start, k in CELLS
    for method in METHODS
]


def draw_data(rng_key):
    """A batch from the truth."""
    z_key, x_key = jax.random.split(rng_key)
    z = jax.random.choice(z_key, NUM_BRANCHES, (BATCH_SIZE,), p=TRUTH)
    return 10.0 * z + 5.0 * jax.random.normal(x_key, (BATCH_SIZE,))


def errors(theta, phi, x):
    """p-error and q-error."""
    site = numpyro.handlers.trace(numpyro.handlers.seed(numpyro.handlers.substitute(guide, phi), 0)).get_trace(x)["z"]
    log_joint = jnp.log(TRUTH) + norm.logpdf(x[:, None], 10.0 * jnp.arange(NUM_BRANCHES), 5.0)
    q_error = jnp.linalg.norm(site["fn"].probs - jax.nn.softmax(log_joint), axis=-1).mean()
    return jnp.linalg.norm(jax.nn.softmax(theta["logits"] / 2.0) - TRUTH), q_error


def by_rws(method, model, num_particles):
    """Functions of this package: a state, a step, parameters of both programs, and the guide's loss."""
    options = METHODS[method]
    rws = rws_jax.make_step(model, guide, num_particles=num_particles, **options)

    def loss(phi, theta, rng_key, x):
        *keys, defensive_key = jax.random.split(rng_key, 3)
        programs = [numpyro.handlers.seed(program, key) for program, key in zip((model, guide), keys, strict=True)]
        if method == "sleep":  # draws as many values in all as wake does
            return rws_jax.sleep_phi_loss(theta, phi, *programs, x, num_particles=num_particles)
        seeded = dict(options)
        if "defensive_guide" in options:
            seeded["defensive_guide"] = numpyro.handlers.seed(uniform_guide, defensive_key)
        return rws_jax.wake_phi_loss(theta, phi, *programs, x, num_particles=num_particles, **seeded)

    return rws.init, lambda state, x: rws.step(state, x)[0], lambda state: state.plain[:2], loss


def by_numpyro(model, num_particles):
    """The same of NumPyro's `SVI`, on the ELBO."""
    objective = TraceGraph_ELBO(num_particles=num_particles)
    svi = SVI(model, guide, optax.adam(1e-3), objective)

    def params(state):
        phi = dict(svi.get_params(state))
        return {"logits": phi.pop("logits")}, phi

    loss = lambda phi, theta, rng_key, x: objective.loss(rng_key, theta | phi, model, guide, x)
    return svi.init, lambda state, x: svi.update(state, x)[0], params, loss


def run(start, num_particles, method, num_seeds, num_steps):
    """Errors and the noise of the gradient along training, and the time of a step."""
    of_start = partial(model, start=STARTS[start])
    functions = by_rws(method, of_start, num_particles) if METHODS[method] is not None else None
    init, step, params, loss = functions or by_numpyro(of_start, num_particles)
    num_inner, x = num_steps // NUM_PARTS, draw_data(jax.random.key(123))

    def begin(rng_key):
        init_key, data_key = jax.random.split(rng_key)
        return init(init_key, draw_data(data_key)), data_key

    def train(state, data_key, first):
        body = lambda state, index: (step(state, draw_data(jax.random.fold_in(data_key, index))), None)
        return jax.lax.scan(body, state, first + jnp.arange(num_inner))[0]

    def measure(state, rng_key):
        theta, phi = params(state)
        keys = jax.random.split(rng_key, 100)
        grads = jax.lax.map(lambda key: jax.grad(loss)(phi, theta, key, x), keys)
        variance = sum(jnp.sum(jnp.var(leaf, axis=0)) for leaf in jax.tree.leaves(grads))
        return *errors(theta, phi, x), jnp.sqrt(variance)

    state, data_keys = jax.jit(jax.vmap(begin))(jax.vmap(jax.random.key)(jnp.arange(num_seeds)))
    train = jax.jit(jax.vmap(train, (0, 0, None))).lower(state, data_keys, 0).compile()
    measure = jax.jit(jax.vmap(measure, (0, None)))
    seconds, rows = [], [measure(state, jax.random.key(0))]
    for part in range(NUM_PARTS):
        begun = time.process_time()
        state = jax.block_until_ready(train(state, data_keys, jnp.int32(part * num_inner)))
        seconds.append(time.process_time() - begun)
        rows.append(measure(state, jax.random.key(part + 1)))
    short = lambda value: float(f"{value:.3g}")  # keeps the file of results small
    curves = {
        name: [[short(value) for value in seed] for seed in jnp.stack(values, axis=1).tolist()]
        for name, values in zip(("p_error", "q_error", "grad_std"), zip(*rows, strict=True), strict=True)
    }
    return curves | {"milliseconds": round(1e3 * statistics.median(seconds) / num_inner / num_seeds, 4)}


# p-error and q-error of an independent re-run in plain JAX; medians of 3 to 5 seeds.
REFERENCE = {
    ("far", 2, "sleep"): (0.743, 0.908),
    ("far", 2, "wake, plain"): (0.525, 0.810),
    ("far", 2, "VIMCO"): (0.246, 0.413),
    ("far", 2, "defensive wake, plain"): (0.0061, 0.171),
    ("far", 2, "defensive wake"): (0.0061, 0.123),
    ("far", 5, "sleep"): (0.640, 0.804),
    ("far", 5, "wake, plain"): (0.138, 0.214),
    ("far", 5, "VIMCO"): (0.0028, 0.103),
    ("far", 5, "defensive wake, plain"): (0.0032, 0.069),
    ("far", 20, "sleep"): (0.320, 0.443),
    ("far", 20, "wake, plain"): (0.0027, 0.040),
    ("far", 20, "VIMCO"): (0.0026, 0.179),
    ("far", 20, "defensive wake, plain"): (0.0027, 0.037),
    ("far", 20, "defensive wake"): (0.0027, 0.021),
    ("near", 2, "sleep"): (0.0035, 0.072),
    ("near", 2, "wake, plain"): (0.477, 0.795),
    ("near", 2, "VIMCO"): (0.252, 0.351),
    ("near", 2, "defensive wake, plain"): (0.0056, 0.190),
}
STYLES = {
    "sleep": ("#009E73", "--"),
    "wake": ("#0072B2", "-"),
    "defensive wake": ("#D55E00", "-"),
    "VIMCO": ("#CC79A7", "-."),
    "REINFORCE": ("#000000", ":"),
}


def quartiles(curves):
    """Lower quartile, median and upper quartile over seeds of the mean over the last five evaluations."""
    return statistics.quantiles([statistics.mean(curve[-5:]) for curve in curves], n=4, method="inclusive")


def tables(runs):
    """The end of training, by start, number of particles and method."""
    number = lambda value: f"{value:.4f}" if value < 0.02 else f"{value:.3f}"
    spread = lambda low, middle, high: f"{number(middle)} ({number(low)} to {number(high)})"
    names = ("start", "K", "method", "p-error", "re-run", "q-error", "re-run", "gradient std", "ms/step")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    order = {name: index for index, name in enumerate(METHODS)}
    for run in sorted(runs, key=lambda run: (run["start"], run["num_particles"], order[run["method"]])):
        start, k, method = run["start"], run["num_particles"], run["method"]
        p_re_run, q_re_run = [number(value) for value in REFERENCE.get((start, k, method), ())] or ("", "")
        cells = spread(*quartiles(run["p_error"])), p_re_run, spread(*quartiles(run["q_error"])), q_re_run
        noise = f"{quartiles(run['grad_std'])[1]:.0f}"
        rows.append(f"| {start} | {k} | {method} | {' | '.join(cells)} | {noise} | {run['milliseconds']:.2f} |")
    return "\n".join(rows)


def figure(runs):
    """Errors and noise along training from the far start: medians over seeds, and quartiles as bands."""
    import matplotlib.pyplot as plt

    far = [run for run in runs if run["start"] == "far" and run["method"] in STYLES]
    columns = sorted({run["num_particles"] for run in far})
    labels = {"p_error": "p-error", "q_error": "q-error", "grad_std": "std of guide's gradient"}
    size = 1.0 + 2.25 * len(columns), 7.2
    grid = {"sharex": True, "sharey": "row", "squeeze": False}
    fig, axes = plt.subplots(3, len(columns), figsize=size, layout="constrained", **grid)
    for run in sorted(far, key=lambda run: list(STYLES).index(run["method"])):
        color, style = STYLES[run["method"]]
        column = axes[:, columns.index(run["num_particles"])]
        thousands = np.linspace(0.0, run["num_steps"] / 1000.0, NUM_PARTS + 1)
        for ax, name in zip(column, labels, strict=True):
            low, middle, high = np.quantile(run[name], (0.25, 0.5, 0.75), axis=0)
            ax.fill_between(thousands, low, high, color=color, alpha=0.2, linewidth=0)
            ax.plot(thousands, middle, style, color=color, label=run["method"], linewidth=1.8)
    for k, column in zip(columns, axes.T, strict=True):
        column[0].set_title(f"K = {k}")
        column[-1].set_xlabel("thousand steps")
    for label, row in zip(labels.values(), axes, strict=True):
        row[0].set_ylabel(label)
        for ax in row:
            ax.set_yscale("log")
            ax.spines[["top", "right"]].set_visible(False)
    handles = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return fig
