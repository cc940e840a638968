"""Real data must not reach dreams, nor the guide in sleep.

First by dependence, which needs no values and so holds under every transformation: a dream, and what the guide makes of
it, are traced as functions of the arguments, and what depends on an observed array is read off. Where something does,
and the data are known, values decide: all is run once more with other data, and has to come out the same. Arithmetic
that comes to nothing, ``0 * x``, say, is then let through, and refused only where nothing is known.
"""

from typing import Any

import jax

from rws_jax.checks import dreams
from rws_jax.core.dependence import dependence
from rws_jax.core.sites import Trace
from rws_jax.programs.program import Index, Program, Programs
from rws_jax.programs.trials import UNTRACEABLE, Dreamer, Moved, Trial, density_of

_TRIES = 8  # dreams that are put in place of data, as one may equal them: discrete data are often few


def check_no_real_data(dreamer: Dreamer, programs: Programs, index: Index, *, by_values: bool) -> None:
    """Dreams are of the model alone, and the guide is shown dreams alone.

    Args:
      dreamer: what dreams.
      programs: of one datum, if they are written for one.
      index: which dream.
      by_values: whether programs that cannot be traced are run for it.

    Raises:
      ValueError: if a dream, which of its data are masked, or the guide's density of it depends on what it must not.
    """
    trial = Trial(dreamer, programs.map(Program.stopped), index)  # no gradient passes, so that values are known
    traced = trial.traced()
    known = trial.known() if by_values or traced is not None else None
    source = traced or known
    if source is None:
        return  # such programs are refused, or run, elsewhere
    for name in source.sites_of_latents():
        dreams.fail_observes_latents(name)
    if dreamer.rewrite is None:
        dreams.check_masks(source.masks_of_dreams())
    for name, holders in source.holders.items():
        moved = traced.moved_by_data(holders) if traced is not None else Moved(dream=False, density=False)
        if known is not None and (traced is None or any(moved)):
            moved = known.moved_by_data(name, holders, tries=1 if traced is None else _TRIES) or moved
        if moved.dream:
            dreams.fail_reads_data(name)
        if moved.density:
            dreams.fail_shows_data(name, programs.guide.fn)


def reads_data(dreamer: Dreamer, programs: Programs, index: Index, model_run: Trace, dream: Any) -> bool:
    """Whether the guide's density of a dream depends on the dreamt data, by arithmetic if not in value."""
    run = lambda data: density_of(dreamer.run(programs, index, dream._replace(data=data), model_run)[0])
    try:
        jaxpr = jax.make_jaxpr(run)(dream.data)
    except UNTRACEABLE:
        return True  # Python has to know them
    return any(dependence(jaxpr))
