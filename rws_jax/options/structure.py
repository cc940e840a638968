"""Structure of weights: more than one log-weight for a particle of a unit, along plates or along time."""

from dataclasses import dataclass

from rws_jax.checks import structure as checks
from rws_jax.checks.arguments import check_int
from rws_jax.estimators.nested import NestedParticle
from rws_jax.estimators.resampled import ResampledParticle
from rws_jax.estimators.wake import WakeParticle, Weighing
from rws_jax.options.execution import ExecutionOptions


@dataclass(frozen=True)
class StructureOptions:
    """Which draws have weights of their own; see `wake_phi_loss`. By default each particle has one for each unit."""

    num_local_particles: int = 1
    local_numbers: str = "common"
    resample: str | None = None
    resample_below: float = 0.5

    def __post_init__(self) -> None:
        expected, hint = "an int >= 1, particles of local latents for each particle", "pass num_local_particles=10, say"
        check_int(self.num_local_particles, "num_local_particles", 1, expected=expected, hint=hint)
        checks.check_local_numbers(self.local_numbers)
        checks.check_resample(self.resample)
        checks.check_resample_below(self.resample_below)
        if self.num_local_particles > 1 and self.resample:
            checks.fail_both(self.num_local_particles, self.resample)

    @property
    def name(self) -> str | None:
        """How messages call it; None for a particle that has one weight for each unit."""
        if self.num_local_particles > 1:
            return f"num_local_particles={self.num_local_particles}"
        return f"resample={self.resample!r}" if self.resample else None

    def check_draws(self, gradient: str, share: float) -> None:
        """Weights of parts of a draw are for draws of the guide alone, and for its score."""
        if self.name is not None:
            checks.check_gradient(self.name, gradient)
            checks.check_not_defensive(self.name, share)

    def check_runs(self, execution: ExecutionOptions) -> None:
        """Particles that share draws run together."""
        if self.name is not None:
            checks.check_vectorized(self.name, execution.one_by_one)
            checks.check_not_chunked(self.name, execution.chunk_size if self.resample else None)

    def of(self, particle: WakeParticle) -> Weighing:
        """What one particle computes, of one run of the programs or of many."""
        if self.num_local_particles > 1:
            return NestedParticle(particle, self.num_local_particles, self.local_numbers == "common")
        return ResampledParticle(particle, self.resample_below) if self.resample else particle
