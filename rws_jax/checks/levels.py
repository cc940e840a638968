"""What plates have to be for their elements to have local particles of their own."""

from typing import NoReturn

from rws_jax.core.errors import fail

_OPTION = "num_local_particles"


def fail_no_inner_plate(units: list[str]) -> NoReturn:
    """There is nothing to nest."""
    found = (
        f"all latents in {_plates(units)}, which all sites are in"
        if units
        else "no latent that the guide draws in a plate"
    )
    hint = (
        "leave it out: each element of these plates is a unit, with particles of its own" if units else "leave it out"
    )
    fail(
        ValueError,
        f"option {_OPTION!r} finds no inner plate",
        expected="some latents inside of a numpyro.plate, and some sites outside of it",
        found=found,
        hint=hint,
    )


def fail_crossed(name: str, levels: list[list[str]]) -> NoReturn:
    """Given what is outside, elements of crossed plates are not independent."""
    fail(
        ValueError,
        f"option {_OPTION!r} finds crossed plates at site {name!r}",
        expected="plates with latents that are nested in one another",
        found=f"site {name!r} in {_plates(levels[0])}, and in {_plates(levels[1])}, each with latents outside of the"
        " other",
        hint="draw the latents of one of them together, by to_event() in place of the plate: they are then outside",
    )


def fail_branching() -> NoReturn:
    """Sites of local particles are the same for all."""
    fail(
        ValueError,
        f"option {_OPTION!r} does not go together with programs that branch in Python",
        expected="the same sites for all particles",
        found="a site with infer={'branching': True}",
        hint="leave it out, or write the branches by jnp.where or numpyro.handlers.mask",
    )


def fail_depends(role: str, name: str, plates: list[str]) -> NoReturn:
    """Elements of a plate are independent given what is outside, which they have to leave alone."""
    fail(
        ValueError,
        f"site {name!r} of the {role} depends on latents in {_plates(plates)}, and is outside of it",
        expected=f"with {_OPTION}, sites that depend on latents of their own plates, and of those around these",
        found=f"a log density that is another one for each local particle of {_plates(plates)}",
        hint="put the site into the plate, with its own plate nested in it where an index picks elements (padded, under"
        " numpyro.handlers.mask, if groups differ in size); or draw the latents outside, by to_event(); or leave"
        f" {_OPTION} out",
    )


def _plates(names: list[str]) -> str:
    return ("plate " if len(names) == 1 else "plates ") + ", ".join(map(repr, sorted(names)))
