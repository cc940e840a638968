"""The small networks of a compiled guide, as functions of trees of arrays; nothing here knows of programs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = dict[str, Any]

_LINEAR_TO = 5.0  # standard deviations


def linear(rng_key: jax.Array, num_inputs: int, num_outputs: int, scale: float = 1.0) -> jax.Array:
    """Weights that keep the scale of their inputs, times `scale`."""
    return scale * jax.random.normal(rng_key, (num_inputs, num_outputs)) / jnp.sqrt(float(max(1, num_inputs)))


def standard(tree: Tree, value: jax.Array) -> jax.Array:
    """Numbers in standard units of the dreams, which grow as a logarithm beyond five of these.

    Shift and scale are constants that are kept with the parameters.
    """
    shift, scale = lax.stop_gradient((tree["shift"], tree["scale"]))  # removes their gradient, as they are not trained
    units = (value - jnp.broadcast_to(shift, value.shape)) / jnp.broadcast_to(scale, value.shape)
    units = jnp.where(jnp.isnan(units), 0.0, units)  # what is missing
    beyond = jnp.maximum(jnp.abs(units) - _LINEAR_TO, 0.0)
    return jnp.clip(units, -_LINEAR_TO, _LINEAR_TO) + jnp.sign(units) * jnp.log1p(beyond)


def affine(tree: Tree, value: jax.Array) -> jax.Array:
    """A linear layer."""
    outputs = value @ tree["weights"]
    return outputs + jnp.broadcast_to(tree["bias"], outputs.shape)


# What is compiled by itself saves time where programs run un-jitted; elsewhere XLA sees through it.
@jax.jit
def embedded_argument(tree: Tree, value: jax.Array) -> jax.Array:
    """An argument in standard units, mapped linearly."""
    return standard(tree, value) @ tree["weights"]


@jax.jit
def embedded_draw(tree: Tree, value: jax.Array) -> jax.Array:
    """A latent in standard units, through one layer."""
    return activation(affine(tree, standard(tree, value)))


@partial(jax.jit, static_argnums=2)
def first_layer(tree: Tree, inputs: dict[str, jax.Array], num_dims: int) -> jax.Array:
    """The sum of what each kind of input says, ``(*batch, hidden)`` with so many batch dims."""
    bias = tree["bias"].reshape((1,) * num_dims + (-1,))
    return activation(total([bias, *(inputs[kind] @ weights for kind, weights in tree["inputs"].items())]))


@jax.jit
def last_layers(tree: Tree, value: jax.Array) -> jax.Array:
    """The parameters of a proposal."""
    return affine(tree["outputs"], activation(affine(tree["hidden"], value)))


def total(values: Sequence[jax.Array]) -> jax.Array:
    """The sum of arrays of one rank, broadcast."""
    shape = jnp.broadcast_shapes(*(value.shape for value in values))
    return sum((jnp.broadcast_to(value, shape) for value in values[1:]), jnp.broadcast_to(values[0], shape))


def activation(value: jax.Array) -> jax.Array:
    """A smooth one, so that no unit of a network is ever dead."""
    return jax.nn.silu(value)


def new_affine(rng_key: jax.Array, num_inputs: int, num_outputs: int, scale: float = 1.0) -> Tree:
    """A linear layer, its biases zero."""
    return {"weights": linear(rng_key, num_inputs, num_outputs, scale), "bias": jnp.zeros(num_outputs)}


def new_recurrent(rng_key: jax.Array, num_inputs: int, hidden: int) -> Tree:
    """A gated recurrent unit (Cho et al. 2014)."""
    of_input, of_state, of_candidate = jax.random.split(rng_key, 3)
    return {
        "inputs": new_affine(of_input, num_inputs, 3 * hidden),
        "gates": linear(of_state, hidden, 2 * hidden),
        "candidate": linear(of_candidate, hidden, hidden),
    }


def last_state(tree: Tree, values: jax.Array) -> jax.Array:
    """The state of a gated recurrent unit after all of `values`, along their first axis."""
    step = lambda state, value: (recurrent(tree, state, value), None)
    return lax.scan(step, jnp.zeros_like(values[0]), values)[0]


def recurrent(tree: Tree, state: jax.Array, value: jax.Array) -> jax.Array:
    """The next state of a gated recurrent unit."""
    reset, update, candidate = jnp.split(affine(tree["inputs"], value), 3, axis=-1)
    of_reset, of_update = jnp.split(state @ tree["gates"], 2, axis=-1)
    candidate = jnp.tanh(candidate + (jax.nn.sigmoid(reset + of_reset) * state) @ tree["candidate"])
    update = jax.nn.sigmoid(update + of_update)
    return update * state + (1.0 - update) * candidate
