"""Which losses a step computes, and how: the options that `make_step` and `ReweightedWakeSleep` share, as one."""

from collections.abc import Callable
from dataclasses import dataclass

from rws_jax import matching, options, validation
from rws_jax.handlers import Program
from rws_jax.layout import Layout
from rws_jax.options import SleepOptions, WakeOptions
from rws_jax.sites import Trace


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Options, checked together. Wake runs if the guide is trained on it or the model has parameters."""

    wake: WakeOptions
    sleep: SleepOptions | None
    trains_on_wake: bool
    defensive_guide: Program | None
    model_has_params: bool
    shared_params: bool

    @classmethod
    def of(
        cls,
        *,
        num_particles: int,
        insomnia: float | Callable,
        num_sleep_particles: int | None,
        control_variate: bool,
        defensive: float,
        defensive_guide: Program | None,
        gradient: str,
        layout: Layout,
        model_has_params: bool,
        shared_params: bool,
        simulated_data_to_args: Callable[..., tuple[tuple, dict]] | None,
        observed_sites: tuple[str, ...],
    ) -> "Phases":
        """From options as they are passed; see `make_step`."""
        if defensive_guide is not None:
            validation.check_program(defensive_guide, "defensive guide")
        options.check_defensive_share(defensive, defensive_guide)
        options.check_insomnia(insomnia)
        trains_on_wake = callable(insomnia) or insomnia > 0
        options.check_num_particles(
            num_particles, "num_particles", layout if trains_on_wake else Layout(), minimum=2 if trains_on_wake else 1
        )
        num_sleep_particles = num_particles if num_sleep_particles is None else num_sleep_particles
        options.check_num_particles(num_sleep_particles, "num_sleep_particles", layout, minimum=1)
        validation.check_flag(model_has_params, "model_has_params")
        validation.check_flag(shared_params, "shared_params")
        wake = WakeOptions(
            num_particles=num_particles,
            control_variate=control_variate,
            defensive=defensive,
            gradient=gradient,
            layout=layout,
        )
        sleep = SleepOptions(
            num_particles=num_sleep_particles,
            simulated_data_to_args=simulated_data_to_args,
            observed_sites=observed_sites,
            layout=layout,
        )
        return cls(
            wake=wake,
            sleep=sleep if callable(insomnia) or insomnia < 1 else None,
            trains_on_wake=trains_on_wake,
            defensive_guide=defensive_guide,
            model_has_params=model_has_params,
            shared_params=shared_params,
        )

    def check_params(self, theta: Trace, phi: Trace) -> None:
        """Param sites of model and guide must be what the options say of them."""
        matching.check_disjoint(theta, phi, self.shared_params)
        matching.check_model_has_params(theta, self.model_has_params)
        if theta:
            options.check_num_particles(self.wake.num_particles, "num_particles", self.wake.layout, minimum=2)
