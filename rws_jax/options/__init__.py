"""Every option of the losses, of `make_step` and of `ReweightedWakeSleep`, declared and checked once.

Options become an executor, which says how particles run, and the estimators of wake and sleep, which say what is
computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import jax

from rws_jax.checks import matching
from rws_jax.checks import options as checks
from rws_jax.checks.arguments import check_flag, check_int, check_program
from rws_jax.core.layers import MutableState, ProgramFn, hashable
from rws_jax.core.sites import Trace, trained_sites
from rws_jax.estimators.sleep import DreamParticle, Sleep
from rws_jax.options.execution import ExecutionOptions as ExecutionOptions
from rws_jax.options.structure import StructureOptions as StructureOptions
from rws_jax.options.wake import GRADIENTS as GRADIENTS
from rws_jax.options.wake import WakeOptions as WakeOptions
from rws_jax.programs.observations import SimulatedDataToArgs

Insomnia = float | Callable[[jax.Array], Any]


@dataclass(frozen=True)
class SleepOptions:
    """How dreams are drawn and shown to the guide; see `sleep_phi_loss`."""

    num_dreams: int
    simulated_data_to_args: SimulatedDataToArgs | None = None
    observed_sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks.check_sleep_options(self.simulated_data_to_args, self.observed_sites)

    @cached_property
    def estimator(self) -> Sleep:
        """The estimator that these options ask for."""
        rewrite = self.simulated_data_to_args and hashable(self.simulated_data_to_args)
        return Sleep(self.num_dreams, DreamParticle(tuple(self.observed_sites), rewrite))


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step minimises, checked together: the options that `make_step` and `ReweightedWakeSleep` share."""

    execution: ExecutionOptions
    num_particles: int
    insomnia: Insomnia
    num_sleep_particles: int | None
    control_variate: bool
    defensive: float
    defensive_guide: ProgramFn | None
    gradient: str
    structure: StructureOptions
    model_has_params: bool
    shared_params: bool
    simulated_data_to_args: SimulatedDataToArgs | None
    observed_sites: tuple[str, ...]
    wake: WakeOptions = field(init=False)
    sleep: SleepOptions | None = field(init=False)  # None: it has no share

    def __post_init__(self) -> None:
        if self.defensive_guide is not None:
            check_program(self.defensive_guide, "defensive guide")
        checks.check_insomnia(self.insomnia)
        on_wake = self.trains_phi_on_wake
        execution = self.execution if on_wake else ExecutionOptions()  # particles of wake then need not divide
        execution.check_number(self.num_particles, "num_particles", 2 if on_wake else 1)
        num_dreams = self.num_particles if self.num_sleep_particles is None else self.num_sleep_particles
        self.execution.check_number(num_dreams, "num_sleep_particles", 1)
        check_flag(self.model_has_params, "model_has_params")
        check_flag(self.shared_params, "shared_params")
        rest = self.defensive, self.defensive_guide, self.gradient, self.structure
        wake = WakeOptions(self.num_particles, self.control_variate, *rest)
        wake.structure.check_runs(self.execution)
        sleep = SleepOptions(num_dreams, self.simulated_data_to_args, self.observed_sites)
        has_sleep = callable(self.insomnia) or self.insomnia < 1
        object.__setattr__(self, "wake", wake)
        object.__setattr__(self, "sleep", sleep if has_sleep else None)

    @classmethod
    def of_phase(cls, execution: ExecutionOptions, sleep: SleepOptions, *, wake: bool) -> "StepOptions":
        """The options of wake or of sleep alone, of which the rest refuses no programs that other values allow."""
        return cls(
            execution=execution,
            num_particles=2,
            insomnia=float(wake),
            num_sleep_particles=sleep.num_dreams,
            control_variate=False,
            defensive=0.0,
            defensive_guide=None,
            gradient="score",
            structure=StructureOptions(),
            model_has_params=True,
            shared_params=True,
            simulated_data_to_args=sleep.simulated_data_to_args,
            observed_sites=sleep.observed_sites,
        )

    @property
    def trains_phi_on_wake(self) -> bool:
        """Whether wake-phi has a share; wake runs as well if the model has parameters."""
        return callable(self.insomnia) or self.insomnia > 0

    def check_params(self, theta: Trace, phi: Trace) -> None:
        """Param sites of model and guide must be what the options say of them."""
        theta, phi = trained_sites(theta), trained_sites(phi)
        matching.check_disjoint(theta, phi, self.shared_params)
        matching.check_model_has_params(theta, self.model_has_params)
        if theta:
            self.execution.check_number(self.num_particles, "num_particles", 2)


@dataclass(frozen=True, kw_only=True)
class RunOptions(ExecutionOptions):
    """How trained programs run."""

    mutable_state: MutableState | None = field(
        default=None, metadata={"help": "``state.mutable_state``, for programs that have some."}
    )

    @property
    def execution(self) -> ExecutionOptions:
        """How particles run, a value: equal ones share what is compiled."""
        return ExecutionOptions(*(getattr(self, option.name) for option in fields(ExecutionOptions)))

    @property
    def u(self) -> ProgramFn | None:
        """The program that defensive proposals come from, if it is not the model."""
        return None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(RunOptions):
    """How particles of trained programs are drawn, to be weighed."""

    num_particles: int = field(default=1000, metadata={"help": "K, particles of each unit, at least 1."})
    defensive: float = field(
        default=0.0, metadata={"help": "share of particles that do not come from the guide; see `wake_phi_loss`."}
    )
    defensive_guide: ProgramFn | None = field(
        default=None, metadata={"help": "program that they come from, not seeded; default the model's prior."}
    )

    num_local_particles: int = field(
        default=1,
        metadata={
            "help": "L, particles of latents in inner plates for each particle; see `wake_phi_loss`. That elements of"
            " these plates do not depend on one another is checked by ``init`` alone."
        },
    )
    resample: str | None = field(
        default=None, metadata={"help": '``"systematic"`` to resample along a scan; see `wake_phi_loss`.'}
    )
    resample_below: float = field(
        default=0.5, metadata={"help": "share of the particles; resampling is for effective sample sizes below it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number(self.num_particles, "num_particles", 1)
        self.wake.structure.check_runs(self.execution)

    @property
    def num(self) -> int:
        """How many particles there are of each unit."""
        return self.num_particles

    @property
    def u(self) -> ProgramFn | None:
        """The program that defensive proposals come from, if it is not the model."""
        return self.defensive_guide

    @property
    def wake(self) -> WakeOptions:
        """How they are drawn."""
        # Standard errors are those of particles that share no random numbers.
        structure = StructureOptions(self.num_local_particles, "independent", self.resample, self.resample_below)
        return WakeOptions(self.num_particles, True, self.defensive, self.defensive_guide, structure=structure)


@dataclass(frozen=True, kw_only=True)
class DreamOptions(RunOptions):
    """How dreams of trained programs are drawn and shown to the guide."""

    simulated_data_to_args: SimulatedDataToArgs | None = field(
        default=None, metadata={"help": "how the guide is shown dreamt data; see `sleep_phi_loss`."}
    )
    observed_sites: tuple[str, ...] = field(
        default=(), metadata={"help": "names of data sites of a model that runs without data."}
    )

    @property
    def dreamer(self) -> DreamParticle:
        """What one dream computes."""
        return SleepOptions(1, self.simulated_data_to_args, self.observed_sites).estimator.particle


@dataclass(frozen=True, kw_only=True)
class WeighedDreamOptions(DreamOptions):
    """How dreams are drawn, and particles of the guide for each of them."""

    num_particles: int = field(default=100, metadata={"help": "K, particles for each dream and for the real data."})

    def __post_init__(self) -> None:
        super().__post_init__()
        hint = "pass num_particles=100, say"
        check_int(self.num_particles, "num_particles", 1, expected="an int >= 1", hint=hint)

    @property
    def num(self) -> int:
        """How many particles there are for each dream."""
        return self.num_particles


# Options that only make_step or ReweightedWakeSleep has, beside those above.
_OF_TRAINING = {"theta_optimizer", "phi_optimizer", "phi_steps", "compile_after", "max_compiled", "max_paths"}
_OF_TRAINING |= {"max_plate_nesting", "strict_enumeration_warning"}
_KINDS = ExecutionOptions, StructureOptions, StepOptions
_DECLARED = {option.name for kind in _KINDS for option in fields(kind) if option.init}
NAMES = _OF_TRAINING | _DECLARED - {"execution", "structure"}
