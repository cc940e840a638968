"""Which plates and scans the arguments of a model lie along, as dreams of it have shown."""

from typing import Any

import jax.numpy as jnp

from rws_jax.guides.axes import Names, named_axes
from rws_jax.guides.dreams import Dreams, DreamtData, Frames


def axes_of(
    leaves: dict[str, Any], dreams: Dreams, data_plates: dict[str, tuple[str, ...]]
) -> dict[str, tuple[Names, ...]]:
    """Names of the first axes of each argument.

    What is observed lies along the plates around its site. All else may lie along those of any site.

    Args:
      leaves: arguments that hold numbers, by name.
      dreams: what dreams have met.
      data_plates: what the user says of some arguments.
    """
    of_latents = [site.frames for site in dreams.sites.values()]

    def of_leaf(name: str) -> tuple[Names, ...]:
        if name in data_plates:
            return tuple(frozenset([plate]) for plate in data_plates[name])
        observed = {name: dreams.data[name]} if name in dreams.data else dreams.data
        of_data = [_shared(key, place, leaves, of_latents) for key, places in observed.items() for place in places]
        anywhere = [] if name in dreams.data else of_latents
        return named_axes(jnp.shape(leaves[name]), [*anywhere, *of_data])

    return {name: of_leaf(name) for name in leaves}


def _shared(name: str, place: DreamtData, leaves: dict[str, Any], of_latents: list[Frames]) -> Frames:
    """What is around an observed site, less plates whose elements have meanings of their own.

    A plate has none of these if a latent is in it, or if another argument lies along it.
    """
    others = [jnp.shape(leaf) for key, leaf in leaves.items() if key != name]
    alike = {frame for frames in of_latents for frame, _ in frames}
    alike |= {plate for shape in others for names in named_axes(shape, [place.frames]) for plate in names}
    return tuple(frame for frame in place.frames if frame[0] not in place.unlike or frame[0] in alike)
