"""Options of wake: how particles are drawn and weighed, and how the guide learns from them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import jax

from rws_jax.checks import options as checks
from rws_jax.checks.arguments import check_flag
from rws_jax.core.layers import ProgramFn
from rws_jax.estimators import dreg, score, vimco
from rws_jax.estimators.scored import Scored
from rws_jax.estimators.wake import Wake, WakeParticle
from rws_jax.options.structure import StructureOptions


class Gradient(NamedTuple):
    """One value of option `gradient`: an estimator for the guide in wake, and what it asks for."""

    phi_loss: Callable[[Scored], jax.Array]
    guides: str  # which guides it is for
    reparameterised: bool = False  # whether it passes through the draws, which then cannot be defensive ones
    needs_density: bool = False  # whether draws have to come from the guide's density as it is, free of scales
    without_control_variate: Callable[[Scored], jax.Array] | None = None  # None: option `control_variate` plays no part


GRADIENTS = {
    "score": Gradient(score.phi_loss, "guides of any kind", without_control_variate=score.plain_phi_loss),
    "dreg": Gradient(dreg.phi_loss, "reparameterised guides", reparameterised=True, needs_density=True),
    "vimco": Gradient(vimco.phi_loss, "guides of any kind, which it trains on the bound", needs_density=True),
}


@dataclass(frozen=True)
class WakeOptions:
    """How particles are drawn, and how the guide learns from their weights; see `wake_phi_loss`."""

    num: int  # of particles
    control_variate: bool = True
    defensive: float = 0.0
    defensive_guide: ProgramFn | None = None
    gradient: str = "score"
    structure: StructureOptions = field(default_factory=StructureOptions)

    def __post_init__(self) -> None:
        check_flag(self.control_variate, "control_variate")
        checks.check_defensive(self.defensive)
        checks.check_defensive_share(self.defensive, self.defensive_guide)
        checks.check_gradient(self.gradient, {name: gradient.guides for name, gradient in GRADIENTS.items()})
        if self.defensive and GRADIENTS[self.gradient].reparameterised:
            others = [name for name, gradient in GRADIENTS.items() if not gradient.reparameterised]
            checks.fail_defensive_draws(self.gradient, self.defensive, others)
        self.structure.check_draws(self.gradient, self.defensive)

    @property
    def needs_fixed_support(self) -> bool:
        """Whether the support of the guide must not move with its parameters: scores would not have mean zero."""
        return self.control_variate or GRADIENTS[self.gradient].without_control_variate is None

    @property
    def u(self) -> ProgramFn | None:
        """The program that defensive proposals come from, if it is not the model."""
        return self.defensive_guide

    @cached_property
    def particle(self) -> WakeParticle:
        """What one run of the programs computes."""
        gradient = GRADIENTS[self.gradient]
        needs_density = "'defensive'" if self.defensive else None
        needs_density = f"gradient={self.gradient!r}" if gradient.needs_density else needs_density
        return WakeParticle(float(self.defensive), gradient.reparameterised, needs_density)

    @cached_property
    def estimator(self) -> Wake:
        """The estimator that these options ask for."""
        gradient = GRADIENTS[self.gradient]
        plain = None if self.control_variate else gradient.without_control_variate
        return Wake(self.num, self.structure.of(self.particle), plain or gradient.phi_loss)
