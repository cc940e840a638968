"""Reweighted Wake-Sleep for NumPyro: train models with discrete or branching latents in JAX.

Public is what this module exports. All modules inside of it are private, and may change.
"""

from rws_jax.guides.compile_guide import compile_guide
from rws_jax.losses import sleep_phi_loss, wake_phi_loss, wake_theta_loss
from rws_jax.posterior.dreams.calibrated import Calibration
from rws_jax.posterior.dreams.calibration import simulation_based_calibration
from rws_jax.posterior.dreams.gap import SimulationGap
from rws_jax.posterior.dreams.simulation_gap import simulation_gap
from rws_jax.posterior.held_out.evaluate import evaluate
from rws_jax.posterior.held_out.evaluation import Evaluation
from rws_jax.posterior.predictive.predictive import posterior_predictive
from rws_jax.posterior.predictive.to_arviz import to_arviz
from rws_jax.posterior.samples.estimate import Estimate
from rws_jax.posterior.samples.importance import importance_sample, sample_posterior
from rws_jax.posterior.samples.weighted import WeightedSamples
from rws_jax.training.describe import describe
from rws_jax.training.fit import fit
from rws_jax.training.make_step import make_step
from rws_jax.training.minibatches import minibatches
from rws_jax.training.state import RWS, NonFiniteError, RWSInfo, RWSState
from rws_jax.training.svi import ReweightedWakeSleep

__version__ = "0.1.0"

__all__ = [
    "RWS",
    "Calibration",
    "Estimate",
    "Evaluation",
    "NonFiniteError",
    "RWSInfo",
    "RWSState",
    "ReweightedWakeSleep",
    "SimulationGap",
    "WeightedSamples",
    "compile_guide",
    "describe",
    "evaluate",
    "fit",
    "importance_sample",
    "make_step",
    "minibatches",
    "posterior_predictive",
    "sample_posterior",
    "simulation_based_calibration",
    "simulation_gap",
    "sleep_phi_loss",
    "to_arviz",
    "wake_phi_loss",
    "wake_theta_loss",
]
