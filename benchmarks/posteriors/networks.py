"""Networks of plain matrices, whose parameters are NumPyro sites, and what guides have in common."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.nn.initializers import glorot_uniform

BRANCHES = {"branching": True}


def network(name, num_in, num_out, hidden=64):
    """Two hidden layers; takes the parameters now, and returns a function. It starts at zero."""
    sizes = num_in, hidden, hidden, num_out
    weights = [numpyro.param(f"{name}_weight_{i}", initial(sizes[i : i + 2], i < 2)) for i in range(3)]
    biases = [numpyro.param(f"{name}_bias_{i}", jnp.zeros(sizes[i + 1])) for i in range(3)]

    def run(x):
        for i in range(3):
            x = (jnp.tanh(x) if i else x) @ weights[i] + biases[i]
        return x

    return run


def initial(shape, is_hidden=True):
    """Of a matrix of weights."""
    return lambda rng_key: glorot_uniform()(rng_key, shape) if is_hidden else jnp.zeros(shape)


def normal(outputs, loc=0.0, scale=1.0):
    """The normal distribution that two outputs stand for, in the frame of another one."""
    return dist.Normal(loc + scale * outputs[..., 0], scale * jnp.exp(outputs[..., 1]))


def normal_mixture(outputs, num, loc=0.0, scale=1.0):
    """A mixture of normal distributions, from three outputs for each."""
    logits, shift, log_scale = (outputs[..., i * num : (i + 1) * num] for i in range(3))
    start = jnp.linspace(-1.0, 1.0, num)
    parts = dist.Normal(loc + scale * (start + shift), scale * jnp.exp(log_scale))
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


def recurrent(name, num_in, num_units):
    """A gated recurrent network that reads a sequence from its end; takes the parameters now, returns a function."""
    matrices = {}
    for gate in ("update", "reset", "new"):
        weight = numpyro.param(f"{name}_{gate}_weight", initial((num_in + num_units, num_units)))
        matrices[gate] = weight, numpyro.param(f"{name}_{gate}_bias", jnp.zeros(num_units))

    def gate_of(gate, *parts):
        weight, bias = matrices[gate]
        return jnp.concatenate(parts) @ weight + bias

    def step(state, x):
        update, reset = (jax.nn.sigmoid(gate_of(gate, x, state)) for gate in ("update", "reset"))
        state = update * state + (1 - update) * jnp.tanh(gate_of("new", x, reset * state))
        return state, state

    return lambda xs: jax.lax.scan(step, jnp.zeros(num_units), xs, reverse=True)[1]
