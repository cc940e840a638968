"""Every estimator of what a kind of particle computes, from one run of an executor: values and gradients."""

import jax
import jax.numpy as jnp

from rws_jax.estimators import dreg, score, vimco
from rws_jax.estimators.bound import theta_loss
from rws_jax.estimators.sleep import DreamParticle, dream_loss
from rws_jax.estimators.wake import WakeParticle

DELTA = 0.3  # share of defensive proposals

# what a particle computes -> the estimators that are functions of it
ESTIMATORS = {
    WakeParticle(): {
        "theta": theta_loss,
        "phi": score.phi_loss,
        "phi, plain": score.plain_phi_loss,
        "phi, vimco": vimco.phi_loss,
    },
    WakeParticle(DELTA): {
        "theta, defensive": theta_loss,
        "phi, defensive": score.phi_loss,
        "phi, plain, defensive": score.plain_phi_loss,
        "phi, vimco, defensive": vimco.phi_loss,
    },
    WakeParticle(reparameterised=True): {"phi, dreg": dreg.phi_loss},
    DreamParticle(): {"sleep": dream_loss},
}


def values_and_gradients(executor, programs_, num, kinds, *, one_by_one=False):
    """Of all estimators of these kinds of particles; the pullback is mapped over them, where it can be."""
    results = {}
    for particle in kinds:
        run = lambda params, particle=particle: executor(particle, programs_.with_params(params), num)
        scored, pullback = jax.vjp(run, programs_.params)
        pairs = [jax.value_and_grad(loss)(scored) for loss in ESTIMATORS[particle].values()]
        values, cotangents = [value for value, _ in pairs], [cotangent for _, cotangent in pairs]
        if one_by_one:
            gradients = [pullback(cotangent)[0] for cotangent in cotangents]
        else:
            stacked = jax.vmap(pullback)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *cotangents))[0]
            gradients = [jax.tree.map(lambda leaf, row=row: leaf[row], stacked) for row in range(len(pairs))]
        results |= dict(zip(ESTIMATORS[particle], zip(values, gradients, strict=True), strict=True))
    return results
