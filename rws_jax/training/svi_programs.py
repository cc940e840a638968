"""Model and guide as `SVI` trains them: checked as `make_step` does, and kept with what is compiled of them."""

from dataclasses import dataclass, field

import jax
from jax import lax

from rws_jax.checks.arguments import check_program
from rws_jax.checks.control_flow import fail_jitted, fail_static
from rws_jax.checks.params import check_held, check_none_held
from rws_jax.core.errors import CONCRETIZATION_ERRORS
from rws_jax.core.layers import MutableState, Params, ProgramFn
from rws_jax.core.sites import Site, held_sites, param_sites, trained_sites
from rws_jax.core.trees import is_traced
from rws_jax.execution.branching.errors import BranchingSiteError
from rws_jax.execution.branching.path_cache import PathCache
from rws_jax.options import StepOptions
from rws_jax.programs.program import Arguments
from rws_jax.programs.svi_program import svi_program
from rws_jax.training.mutable_state import MutableSites
from rws_jax.training.pilot import PilotRuns, check_elements, run_pilot
from rws_jax.training.step_loss import StepLoss

_MAX_KNOWN = 8


@dataclass(frozen=True)
class SviPrograms:
    """One pair of programs, what is minimised of them, and for arguments of which kinds that was checked."""

    model: svi_program
    guide: svi_program
    loss: StepLoss
    checked: dict[tuple, tuple[str, ...]] = field(default_factory=dict)  # the mutable sites that each kind has

    def check_params(self) -> None:
        """Whether the param sites of all runs are what the options say of them."""
        check_none_held(self.model.held_sites)
        check_held(self.model.param_sites, self.guide.held_sites)
        self.loss.options.check_params(self.model.param_sites, self.guide.param_sites)

    def forget_params(self) -> None:
        """Forget the param sites of the runs so far."""
        for program in (self.model, self.guide):
            program.param_sites.clear()
            program.held_sites.clear()

    def check(self, rng_key: jax.Array, params: Params, arguments: Arguments) -> MutableState:
        """Whether programs, arguments and options fit together, as `make_step`'s init does; returns mutable state.

        Programs that branch are run un-jitted at each update, and checked once for arguments of one kind.
        """
        kind = jax.tree.structure(arguments), *map(jax.typeof, jax.tree.leaves(arguments))
        if self.loss.executor.ragged and kind in self.checked:
            return {name: params[name] for name in self.checked[kind]}

        def pilot(params: Params | None) -> PilotRuns:
            return run_pilot(self.loss, (params, params), jax.random.key(0), arguments, mutable_state=params)

        known = None
        try:
            runs = pilot(lax.stop_gradient(params))  # no gradient passes through checks, so values are known
        except CONCRETIZATION_ERRORS as error:
            (fail_static if self.loss.options.execution.vectorize_particles else fail_jitted)(error)
        except BranchingSiteError:  # SVI.run compiles, but knows the arguments
            if is_traced(arguments):
                raise
            with jax.ensure_compile_time_eval():
                runs = known = pilot(None)
        has_start = all(
            _has_initial_value(site) for run in runs for site in (param_sites(run) | held_sites(run)).values()
        )
        if known is None and is_traced(rng_key) and has_start and not is_traced(arguments):
            # What shows in values only is checked at initial parameters.
            with jax.ensure_compile_time_eval():
                known = pilot(None)
        found = self.loss, (params, params), jax.random.key(0), arguments
        mutable_state = MutableSites(runs).check(*found)
        if self.loss.options.trains_phi_on_wake or trained_sites(param_sites(runs.model)):
            if known is None:
                check_elements(runs, *found, mutable_state)
            else:
                with jax.ensure_compile_time_eval():
                    check_elements(known, self.loss, (None, None), jax.random.key(0), arguments, None)
        self.checked[kind] = tuple(mutable_state)
        return mutable_state


class KnownPrograms:
    """The pairs of programs that one loss is called with, the latest few: what is compiled of these is kept."""

    def __init__(self, options: StepOptions, warns_of_enumeration: bool) -> None:
        self._options, self._warns_of_enumeration = options, warns_of_enumeration
        self._known: dict[tuple[int, int], SviPrograms] = {}  # by id, as not every callable has a hash; they live here

    def of(self, model: ProgramFn, guide: ProgramFn) -> SviPrograms:
        """This pair."""
        key = id(model), id(guide)
        if key not in self._known:
            check_program(model, "model")
            check_program(guide, "guide")
            of_model = svi_program(model, "model", self._warns_of_enumeration)
            of_guide = svi_program(guide, "guide", self._warns_of_enumeration)
            executor = self._options.execution.executor(PathCache(trees_at_once=True))
            self._known[key] = SviPrograms(of_model, of_guide, StepLoss(of_model, of_guide, self._options, executor))
            while len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return self._known[key]


def _has_initial_value(site: Site) -> bool:
    """Not if the value comes from SVI's init_params alone. NumPyro's modules make one after they have asked in vain."""
    return site["name"].endswith("$params") or all(value is not None for value in site["args"])
