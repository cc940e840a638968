"""The optimizers of `make_step`: what each needs beside gradients and parameters, found out before training.

Some optimizers take the loss as well, and some need what no step has. Neither is declared, as optax passes keyword
arguments on through chains, masks and accumulation. So an optimizer is run abstractly: on a small tree of parameters
when `make_step` is called, and on the real one by `init`.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rws_jax.checks.optimizers import check_asks_for_nothing, check_optimizer, fail_update
from rws_jax.core.layers import Params


@dataclass(frozen=True)
class Optimizer:
    """An optax optimizer, which is given the loss by keyword, ``value=loss``, if it takes it."""

    transformation: optax.GradientTransformationExtraArgs
    option: str  # its name in messages
    takes_value: bool | None  # None: it runs on the real parameters only, as its labels or masks name them
    updates: set[Hashable] = field(default_factory=set, compare=False)  # the kinds of parameters that it can update

    @classmethod
    def of(cls, optimizer: Any, option: str) -> "Optimizer":
        """Make one of an option; what a step does not have must not be needed."""
        check_optimizer(optimizer, option)
        # Some take keyword arguments without being of this class, MultiSteps among them: whether they do is tried.
        transformation = optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
        for params in ({}, {"parameter": jnp.zeros(())}):
            takes_value, error = _takes_value(transformation, params)
            if error is None:
                return cls(transformation, option, takes_value)
            check_asks_for_nothing(option, error)
        return cls(transformation, option, None)

    def init(self, params: Params) -> optax.OptState:
        """Its first state, once it is clear that it can update these parameters."""
        kind = jax.tree.structure(params), tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(params))
        if kind not in self.updates:
            self._check(params)
            self.updates.add(kind)
        return self.transformation.init(params)

    def update(
        self, grads: Params, opt_state: optax.OptState, params: Params, loss: jax.Array
    ) -> tuple[optax.Updates, optax.OptState]:
        """What to add to the parameters, and the next state; `loss` is the one whose gradients these are."""
        takes_value = self._check(params) if self.takes_value is None else self.takes_value
        return self.transformation.update(grads, opt_state, params, **({"value": loss} if takes_value else {}))

    def _check(self, params: Params) -> bool:
        takes_value, error = _takes_value(self.transformation, params)
        if error is not None:
            check_asks_for_nothing(self.option, error)
            fail_update(self.option, error, params)
        return takes_value


def _takes_value(optimizer: optax.GradientTransformationExtraArgs, params: Params) -> tuple[bool, Exception | None]:
    """Whether an optimizer takes the loss, and the error if it runs neither with it nor without."""
    error = _error_of(optimizer, params, value=jnp.zeros(()))
    if isinstance(error, TypeError) and "'value'" in str(error):  # an unexpected keyword argument
        return False, _error_of(optimizer, params)
    return True, error


def _error_of(optimizer: optax.GradientTransformationExtraArgs, params: Params, **extra_args: Any) -> Exception | None:
    def update(params: Params, extra_args: dict[str, Any]) -> Any:
        updates, _ = optimizer.update(params, optimizer.init(params), params, **extra_args)
        return optax.apply_updates(params, updates)

    # Shapes alone: the parameters may be on the axes of a mesh, which the optimizer's own arrays are not.
    shape_of = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    try:
        jax.eval_shape(update, *jax.tree.map(shape_of, (params, extra_args)))
    except Exception as error:
        return error
    return None
