"""How the guide is shown dreamt data in sleep. Real data must never reach it in place of dreamt ones."""

import inspect
from collections.abc import Callable

import jax
from numpyro.infer.autoguide import AutoGuide, AutoNormal

from rws_jax.checks import dreams
from rws_jax.core.layers import ProgramFn, unwrapped
from rws_jax.programs.program import Arguments

# ``(simulated data by site, *args, **kwargs) -> (args, kwargs)`` of the guide, as in NumPyro's `vsbc_diagnostic`.
SimulatedDataToArgs = Callable[..., tuple[tuple, dict]]


def show_data(
    guide: ProgramFn,
    data: dict[str, jax.Array],
    args: tuple,
    kwargs: dict,
    simulated_data_to_args: SimulatedDataToArgs | None,
    *,
    subsampled: bool = False,
) -> Arguments:
    """Put dreamt `data` in place of the real ones among the guide's arguments.

    By, in this order: `simulated_data_to_args`; the guide's argument ``observations``, a dict keyed by site, and
    whatever arguments are named as observed sites; these arguments alone, if all observed sites have one.

    Args:
      guide: the guide, whose signature is inspected.
      data: dreamt values keyed by observed site.
      args: the model's real positional arguments, covariates among them.
      kwargs: the model's real keyword arguments.
      simulated_data_to_args: ``(data, *args, **kwargs) -> (args, kwargs)``, or None.
      subsampled: whether the dream is of a minibatch.

    Returns:
      The arguments to call the guide with.

    Raises:
      ValueError: if none of the three ways applies, or dreamt and real data differ in shape.
      TypeError: if `simulated_data_to_args` does not return such a pair.
    """
    if simulated_data_to_args is not None:
        pair = simulated_data_to_args(data, *args, **kwargs)
        dreams.check_pair(pair)
        return Arguments(tuple(pair[0]), dict(pair[1]))
    bare = unwrapped(guide)
    if isinstance(bare, AutoNormal):
        return Arguments(args, kwargs)  # does not read data
    if isinstance(bare, AutoGuide):
        dreams.fail_joint(bare)
    signature = inspect.signature(guide)
    by_name = {p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError as error:
        dreams.fail_unbound(bare, str(error), signature)
    if "observations" in by_name:
        real, shown = bound.arguments.get("observations"), {"observations": data}
        shown |= {name: data[name] for name in data.keys() & bound.arguments.keys()}  # not real ones beside dreamt
    elif data.keys() <= by_name:
        real, shown = bound.arguments, data
    else:
        dreams.fail_unrouted(bare, sorted(data), [str(p) for p in signature.parameters.values()])
    for name, value in data.items():
        if isinstance(real, dict):
            dreams.check_shape(name, value, real.get(name))
        elif subsampled:
            dreams.check_minibatch(name, value, args, kwargs)
    bound.arguments.update(shown)
    return Arguments(bound.args, bound.kwargs)
