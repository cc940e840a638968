"""What running a model at posterior samples asks of both, and messages that say so."""

import inspect
from collections.abc import Container, Iterable
from typing import Any, NoReturn

import jax.numpy as jnp
import numpyro.distributions as dist

from rws_jax.core.errors import fail
from rws_jax.core.layers import ProgramFn, unwrapped
from rws_jax.core.sites import Site, Trace, base_distribution
from rws_jax.core.trees import is_traced


def check_drawable(site: Site) -> None:
    """What is drawn needs a distribution that can be."""
    if isinstance(base_distribution(site["fn"]), dist.ImproperUniform):
        fail(
            ValueError,
            f"site {site['name']!r} of the model cannot be drawn: its distribution is improper",
            expected="proper distributions of all that has no posterior sample",
            found=f"ImproperUniform at site {site['name']!r}",
            hint="keep its posterior samples, or use a proper distribution over the same support",
        )


def check_kept(run: Trace, shapes: dict[str, tuple[int, ...]], is_ragged: bool, draws_data: bool) -> None:
    """Every posterior sample has its place in the model; where programs branch, only on some paths."""
    for name, shape in shapes.items():
        if name not in run:
            if is_ragged:
                continue
            fail(
                ValueError,
                f"the model has no site {name!r}, of which there are posterior samples",
                expected="the model that importance_sample had, or one with the same latents",
                found=f"sites {sorted(n for n, site in run.items() if site['type'] == 'sample')}",
                hint="pass the model, and not the guide, with arguments for which it has all of its latents",
            )
        if not is_ragged and jnp.shape(run[name]["value"]) != shape:  # of more or fewer steps of scan
            fail_shape(run[name], shape, jnp.shape(run[name]["value"]), draws_data)


def fail_shape(site: Site, kept: tuple[int, ...], own: tuple[int, ...], draws_data: bool) -> NoReturn:
    """Posterior samples of a latent are those of other data, or of another number of them.

    What draws data may draw a latent as well; what scores data may not.
    """
    name, plates = site["name"], [frame.name for frame in site["cond_indep_stack"]]
    where = f", in plate {' and '.join(map(repr, plates))}," if plates else ""
    of_data = "pass data_axes as importance_sample had it; or " if len(kept) > len(own) else ""
    anew = f"pass draw_anew=[{name!r}], and the model draws it given all that is kept, for a new group, say; or "
    fail(
        ValueError,
        f"posterior samples of latent site {name!r}{where} are of another shape than the model's",
        expected=f"samples of shape {own}, as the model has with these arguments",
        found=f"samples of shape {kept}, as importance_sample had with its arguments",
        hint=f"{of_data}{anew if draws_data else ''}run importance_sample on these data",
    )


def check_drawn_anew(names: Iterable[str], latents: Iterable[str]) -> None:
    """Only latents can be drawn anew; data are in any case."""
    for name in names:
        if name not in latents:
            fail(
                ValueError,
                f"option 'draw_anew' names {name!r}, of which there are no posterior samples",
                expected=f"latent sites, among {sorted(latents)}",
                found=f"{name!r}",
                hint="leave it out: whatever has no posterior sample is drawn anew, observed sites too",
            )


def check_plate(site: Site) -> None:
    """A minibatch is no larger than all data."""
    size, subsample_size = site["args"]
    if subsample_size is not None and subsample_size > size:
        fail(
            ValueError,
            f"the minibatch of plate {site['name']!r} of the model is larger than the plate",
            expected=f"at most {size} data, the size of the plate",
            found=f"subsample_size={subsample_size}",
            hint="pass fewer data at a time, or give the plate the number of all data as its size",
        )


def check_minibatch(run: Trace, names: Iterable[str]) -> None:
    """Samples of a random minibatch can be put together with data only if it does not matter which it was."""
    used = {name for name, site in run.items() if site["type"] == "plate" and site["is_used"]}
    for name in names:
        for frame in run[name].get("cond_indep_stack", ()):
            if frame.name in used:
                fail(
                    ValueError,
                    f"site {name!r} is in plate {frame.name!r}, of which each run draws a minibatch whose rows matter",
                    expected="the minibatch that posterior samples were drawn for, which is not known here",
                    found=f"values or densities that depend on the indices of plate {frame.name!r}, drawn at random",
                    hint="fix it for importance_sample and here, by model = numpyro.handlers.substitute(model,"
                    f" {{{frame.name!r}: indices}}) and so for the guide; or pass the minibatch itself as an argument,"
                    " and do not use the indices of the plate",
                )


def check_weighted(weighted: Any, kind: type, function: str, hint: str) -> None:
    """Weighted samples are what importance_sample returns."""
    if not isinstance(weighted, kind):
        fail(
            TypeError,
            f"{function} is given no weighted samples",
            expected="WeightedSamples, as importance_sample returns them",
            found=type(weighted).__name__,
            hint=hint,
        )


def check_no_guide(model: ProgramFn, args: tuple, kwargs: dict[str, Any], hint: str) -> None:
    """Other functions of trained programs take a guide after the model, for which the model has no place."""
    try:
        signature = inspect.signature(unwrapped(model))
    except (TypeError, ValueError):  # not every callable has a signature
        return
    if args and callable(args[0]) and not _binds(signature, args, kwargs):
        fail(
            TypeError,
            "the model does not take these arguments, of which the first is a function",
            expected=f"arguments of the model, {signature}",
            found=f"{getattr(args[0], '__name__', type(args[0]).__name__)!r}, and {len(args) - 1} more",
            hint=hint,
        )


def _binds(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def check_known(function: str, tree: Any) -> None:
    """What goes to another library has to be known."""
    if is_traced(tree):
        what, hint = f"{function} is called inside of jit, scan or vmap", "call it on what a compiled function returns"
        fail(TypeError, what, expected="a call from Python", found="a traced argument", hint=hint)


def check_drawn(drawn: Container[str], kept: Iterable[str]) -> None:
    """A program without data, such as the guide, has nothing left to be drawn once its latents are kept."""
    if not drawn:
        fail(
            ValueError,
            "posterior_predictive draws nothing: all that the model draws has posterior samples, or is a constant",
            expected="a model with observed sites, or with other latents than those kept",
            found=f"no sites but {sorted(kept)}",
            hint="pass the model, and not the guide",
        )


def check_same_data(num_data: int | None, units: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Posterior samples of each datum go with programs of one datum, for as many data."""
    of_data = shape[0] if units[:1] == ("datum",) else None
    if num_data is not None and num_data != of_data:
        fail(
            ValueError,
            "posterior samples are not those of the data that are passed",
            expected=f"data_axes as importance_sample had it, and {of_data} data"
            if of_data
            else "data_axes=None, as importance_sample had it",
            found=f"{num_data} data along data_axes",
            hint="run importance_sample on these data, whose latents are others",
        )
