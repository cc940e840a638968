"""What a guide has to know of its model before it has weights: sites, shapes and scales, from dreams of the model."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import block, seed

from rws_jax.checks.guides import fail_mutable
from rws_jax.core.dependence import dependence
from rws_jax.core.errors import CONCRETIZATION_ERRORS
from rws_jax.core.layers import ProgramFn
from rws_jax.core.numpyro_internals import Messenger, active_plates, comes_out_of_control_flow, is_cond
from rws_jax.core.sites import Site, base_distribution
from rws_jax.guides.axes import SCAN
from rws_jax.guides.bodies import Scans
from rws_jax.guides.place import Place
from rws_jax.guides.proposals.family import Family

_NUM = 200

Frames = tuple[tuple[str, tuple[int, ...]], ...]  # the scans and plates around a site with their sizes, outermost first
Values = dict[tuple[str, str], jax.Array]  # numbers, by what they are and of which site or argument


class DreamtSite(NamedTuple):
    """A latent site that a dream has met."""

    place: Place
    frames: Frames
    scan: str  # the scan that it is in, or nothing


class DreamtData(NamedTuple):
    """Where an argument is observed."""

    frames: Frames
    unlike: frozenset[str]  # plates whose elements have distributions of their own, which no plate has given them


@dataclass
class Dreams:
    """What all dreams have met."""

    sites: dict[str, DreamtSite] = field(default_factory=dict)
    data: dict[str, list[DreamtData]] = field(default_factory=dict)  # by the argument that is observed, or nothing
    orders: list[tuple[str, ...]] = field(default_factory=list)  # the latent sites of each dream
    values: dict[tuple[str, str], list[jax.Array]] = field(default_factory=dict)
    varying: set[tuple[str, str]] = field(default_factory=set)  # values that depend on what is drawn


def dream(
    model: ProgramFn, args: tuple, kwargs: dict[str, Any], leaves: dict[str, Any], components: int, observed: set[str]
) -> Dreams:
    """Run the model with all of its sites drawn anew, a few hundred times, with fixed keys.

    Args:
      model: not seeded.
      args: its positional arguments.
      kwargs: its keyword arguments.
      leaves: numbers among its arguments, by name.
      components: of mixtures.
      observed: names of sites that are data without being observed.
    """
    dreams, rng_key = Dreams(), jax.random.key(0)

    def one(rng_key: jax.Array) -> Values:
        handler = dreaming(dreams, leaves, components, observed)
        with block(), seed(rng_seed=rng_key), handler:
            model(*args, **kwargs)
        dreams.orders.append(tuple(handler.order))
        return handler.values

    try:
        jaxpr, shapes = jax.make_jaxpr(one, return_shape=True)(jax.random.clone(rng_key))
        inputs = jax.tree.structure(shapes).unflatten(dependence(jaxpr))
        dreams.varying = {name for name, of in inputs.items() if of}
        dreams.values = {
            name: [value] for name, value in jax.jit(jax.vmap(one))(jax.random.split(rng_key, _NUM)).items()
        }
    except CONCRETIZATION_ERRORS:  # Python has to know what is drawn
        by_shape: dict[tuple, list[np.ndarray]] = {}
        for own_key in jax.random.split(jax.random.clone(rng_key), _NUM):
            for name, value in one(own_key).items():
                by_shape.setdefault((name, value.shape), []).append(np.asarray(value))
        for (name, _), values in by_shape.items():
            dreams.values.setdefault(name, []).append(jnp.asarray(np.stack(values)))
        dreams.varying = {name for name, values in dreams.values.items() if _varies(values)}
    return dreams


@partial(jax.jit, static_argnums=0)  # dreams may run un-jitted, one by one
def _features(family: Family, fn: dist.Distribution, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    return family.features(fn, value), family.prior_features(fn)


def _varies(values: list[jax.Array]) -> bool:
    return bool(np.any(np.ptp(np.concatenate([np.reshape(v, (-1, np.shape(v)[-1])) for v in values]), axis=0) > 0.0))


class dreaming(Messenger):
    """Draws all sites of a model, and notes what it meets."""

    def __init__(
        self,
        dreams: Dreams,
        leaves: dict[str, Any],
        components: int,
        observed: set[str],
        around: Frames = (),
        scans: Scans | None = None,
    ) -> None:
        self.dreams, self.leaves, self.components, self.observed = dreams, leaves, components, observed
        self.around, self.scans = around, scans or Scans()
        self.order: list[str] = []
        self.values: Values = {}
        self.places: dict[str, Place] = {}
        super().__init__()

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "control_flow":
            self._enter(msg)
        elif msg["type"] == "mutable":
            fail_mutable(msg["name"])
        elif msg["type"] == "sample" and not comes_out_of_control_flow(msg):
            plates = sorted(active_plates(), key=lambda plate: plate.dim)
            frames = (*self.around, *((plate.name, (plate.size, len(plate.indices))) for plate in plates))
            if msg["is_observed"] or msg["name"] in self.observed:
                self._draw_data(msg, frames)
            else:
                place = self.places[msg["name"]] = Place.of(msg, self.components, frozenset())
                self.dreams.sites[msg["name"]] = DreamtSite(place, frames, self.scans.path.removesuffix("/"))
                self.order.append(msg["name"])

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] == "control_flow":
            self._leave(msg)
        elif msg["type"] == "sample" and msg["name"] in self.places and not comes_out_of_control_flow(msg):
            place = self.places[msg["name"]]
            if place.family is not None:
                features, of_prior = _features(place.family, place.fn, msg["value"])
                self.values |= {("latents", msg["name"]): features, ("prior", msg["name"]): of_prior}

    def _draw_data(self, msg: Site, frames: Frames) -> None:
        named = f"observations[{msg['name']!r}]"  # of a model that draws its data itself
        same = [name for name, leaf in self.leaves.items() if leaf is msg["value"] or name == named]
        leaf = msg["name"] if msg["name"] in same else next(iter(same), None)  # small integers are one object
        if isinstance(base_distribution(msg["fn"]), dist.Unit):
            return
        unlike = frozenset(plate.name for plate in active_plates() if _differs_along(msg["fn"], plate.dim))
        self.dreams.data.setdefault(leaf or "", []).append(DreamtData(frames, unlike))
        try:
            drawn = msg["fn"](*msg["args"], **msg["kwargs"] | {"rng_key": numpyro.prng_key()})
        except NotImplementedError:  # it has a density alone
            return
        msg["value"], msg["is_observed"] = drawn, True
        if leaf is not None and jnp.shape(drawn) == jnp.shape(self.leaves[leaf]):
            self.values["data", leaf] = jnp.asarray(drawn, float)

    def _enter(self, msg: Site) -> None:
        if is_cond(msg):
            predicate, *bodies, operand = msg["args"]
            msg["args"] = (predicate, *map(self._in_branch, bodies), operand)
            return
        body, carry, xs, length, reverse = msg["args"]
        length = len(jax.tree.leaves(xs)[0]) if length is None else length
        path = self.scans.next()
        along = {i: n for i, x in enumerate(jax.tree.leaves(xs)) for n, leaf in self.leaves.items() if leaf is x}

        def step(carry: Any, x: Any) -> tuple[Any, tuple]:
            slices = jax.tree.leaves(x)
            leaves = self.leaves | {name: slices[i] for i, name in along.items()}
            inside = self._inside(leaves, (*self.around, (SCAN, (length,))), Scans(f"{path}/"))
            with inside:
                carry, y = body(carry, x)
            self.order += inside.order
            return carry, (y, inside.values)

        msg["args"] = (step, carry, xs, length, reverse)

    def _in_branch(self, body: ProgramFn) -> ProgramFn:
        def branch(operand: Any) -> tuple:
            inside = self._inside(self.leaves, self.around, self.scans)
            with inside:
                result = body(operand)
            self.order += inside.order
            return result, inside.values

        return branch

    def _inside(self, leaves: dict[str, Any], around: Frames, scans: Scans) -> "dreaming":
        return dreaming(self.dreams, leaves, self.components, self.observed, around, scans)

    def _leave(self, msg: Site) -> None:
        """Take what a body has drawn out of what it returns."""
        if is_cond(msg):
            (result, values), trace = msg["value"]
            msg["value"] = result, trace
        else:
            last, (trace, (ys, values)) = msg["value"]
            msg["value"] = last, (trace, ys)
        self.values |= values


def _differs_along(fn: Any, dim: int) -> bool:
    """Whether a distribution has parameters along a batch dim, and has not been expanded along it."""
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        fn = fn.base_dist
    shape = fn.batch_shape
    return len(shape) >= -dim and shape[dim] > 1
