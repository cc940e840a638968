"""The handler that makes a guide of a model: latents come from proposals, and what is observed is hidden."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpyro

from rws_jax.checks.guides import check_outputs, check_size, fail_mutable
from rws_jax.core.layers import ProgramFn
from rws_jax.core.numpyro_internals import Messenger, comes_out_of_control_flow
from rws_jax.core.sites import Site
from rws_jax.guides.bodies import Scans, enter, leave
from rws_jax.guides.context import Data, Drawn, Plates, drawn_at
from rws_jax.guides.networks import Tree, embedded_draw, first_layer, last_layers, standard
from rws_jax.guides.place import Place


@dataclass(frozen=True)
class Guide:
    """What is the same wherever a site lies."""

    tree: Tree  # weights, by network and site
    hidden: int  # units of a layer
    components: int
    keep: Callable[[str, str], None]  # called with a site that keeps its prior, and why
    networks: dict[str, Callable] = field(default_factory=dict)  # those of the user, by site
    observed: dict[str, jax.Array | None] = field(default_factory=dict)  # sites that are data, without obs=...


class proposing(Messenger):
    """Makes a guide of the model inside of it.

    What has been drawn in the body of a scan or cond is not known outside of it, so each body has a handler of its own.
    """

    def __init__(
        self, fn: ProgramFn | None, guide: Guide, data: Data, drawn: Iterable[Drawn] = (), scans: Scans | None = None
    ) -> None:
        self.guide, self.data = guide, data
        self.drawn = list(drawn)  # before this body, and in it
        self.places: dict[str, Place] = {}
        self.scans = scans or Scans()
        self.running: list[dict[str, Plates]] = []
        super().__init__(fn)

    def inside(self, fn: ProgramFn | None, data: Data, drawn: Iterable[Drawn], scans: Scans) -> "proposing":
        """The handler of a body within this one."""
        return proposing(fn, self.guide, data, drawn, scans)

    def process_message(self, msg: Site) -> None:
        if msg["type"] == "control_flow":
            enter(self, msg)
        elif msg["type"] == "mutable":
            fail_mutable(msg["name"])
        elif msg["type"] == "deterministic":
            msg["stop"] = True
        elif msg["type"] == "sample" and not comes_out_of_control_flow(msg):
            if msg["is_observed"] or msg["name"] in self.guide.observed:
                self._hide(msg)
            else:
                self._propose(msg)

    def postprocess_message(self, msg: Site) -> None:
        if msg["type"] == "control_flow":
            leave(self, msg)
        elif msg["type"] == "sample" and msg["name"] in self.places:
            self._note(msg["name"], self.places.pop(msg["name"]), msg["value"])

    def _hide(self, msg: Site) -> None:
        msg["stop"] = True
        if msg["value"] is None:
            msg["value"] = self.guide.observed.get(msg["name"])
        if msg["value"] is None:
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"] | {"rng_key": numpyro.prng_key()})

    def _propose(self, msg: Site) -> None:
        name = msg["name"]
        place = self.places[name] = Place.of(msg, self.guide.components, self.data.plates)
        msg["infer"] = {key: value for key, value in msg["infer"].items() if key != "enumerate"}
        msg["scale"] = place.subsampling
        tree = self.guide.tree["proposals"].get(name)
        if place.family is None or tree is None:
            self.guide.keep(name, place.why_none or "none of the dreams at init has met it")
            return
        outputs = self._outputs(name, tree, place)
        num, expected = outputs.shape[-1], place.family.size * place.num_own
        if name in self.guide.networks:
            check_outputs(name, num, expected)
        check_size(name, num, expected, place.fn.batch_shape, place.plates)
        msg["fn"] = place.proposal(outputs)
        msg["kwargs"] = msg["kwargs"] | {"sample_shape": ()}  # the proposal has it among its batch dims

    def _outputs(self, name: str, tree: Tree, place: Place) -> jax.Array:
        value = first_layer(
            {key: tree[key] for key in ("inputs", "bias")},
            {block: self._input(block, tree, place) for block in tree["inputs"]},
            place.num_dims,
        )
        if name in self.guide.networks:
            return self.guide.networks[name](value)
        return last_layers({key: tree[key] for key in ("hidden", "outputs")}, value)

    def _input(self, block: str, tree: Tree, place: Place) -> jax.Array:
        if block == "prior":
            assert place.family is not None
            return standard(tree["prior"], place.gathered(place.family.prior_features(place.fn)))
        if block == "latents":
            return drawn_at(self.drawn, place.plates, place.num_dims, self.guide.hidden)
        value = self.data.at(place.plates, place.num_dims)
        over = block.partition(" over ")[2].split(", ")
        dims = [place.num_dims + plate.dim for plate in place.plates if plate.name in over]
        return jnp.mean(value, axis=dims, keepdims=True) if dims else value

    def _note(self, name: str, place: Place, value: jax.Array) -> None:
        """Keep what was drawn, if a later site reads it."""
        tree = self.guide.tree["latents"].get(name)
        if tree is not None and place.family is not None:
            features = place.gathered(place.family.features(place.fn, value))
            self.drawn.append(Drawn(name, embedded_draw(tree, features), place.data_plates))
