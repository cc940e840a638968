"""A convolutional VAE of 10 continuous latents on 64 handwritten digits of 8x8 pixels, with networks of flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.contrib.module import flax_module

from rws_jax import __main__ as demo

NUM_PARTICLES, LEARNING_RATE = (10,), 1e-3
NUM_LATENTS = 10


class Decoder(nn.Module):
    """Latents to the logits of pixels."""

    @nn.compact
    def __call__(self, z):
        hidden = nn.relu(nn.Dense(2 * 2 * 32)(z)).reshape(*z.shape[:-1], 2, 2, 32)
        hidden = nn.relu(nn.ConvTranspose(16, (4, 4), strides=(2, 2))(hidden))
        return nn.ConvTranspose(1, (4, 4), strides=(2, 2))(hidden)[..., 0]


class Encoder(nn.Module):
    """Pixels to the mean and log scale of latents."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Conv(16, (4, 4), strides=(2, 2))(x[..., None]))
        hidden = nn.relu(nn.Conv(32, (4, 4), strides=(2, 2))(hidden))
        return jnp.split(nn.Dense(2 * NUM_LATENTS)(hidden.reshape(*x.shape[:-2], 2 * 2 * 32)), 2, axis=-1)


def data(size=64):
    """A batch of digits."""
    return demo.load_digits()[0][:size].reshape(-1, 8, 8)


def model(x):
    """A standard normal prior, and pixels that are independent given the latents."""
    decoder = flax_module("decoder", Decoder(), input_shape=(1, NUM_LATENTS))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([NUM_LATENTS]).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(2), obs=x)


def guide(x):
    """Independent latents given the pixels."""
    loc, log_scale = flax_module("encoder", Encoder(), input_shape=(1, 8, 8))(x)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def log_densities(theta, phi, rng_key, x, num_particles):
    """By hand."""
    loc, log_scale = Encoder().apply({"params": phi["encoder$params"]}, x)
    scale = jnp.exp(log_scale)
    noise = jax.random.normal(rng_key, (num_particles, *loc.shape))
    z = jax.lax.stop_gradient(loc + scale * noise)  # no gradient passes through the draw
    logits = Decoder().apply({"params": theta["decoder$params"]}, z)
    log_x = x * logits + jax.nn.log_sigmoid(-logits)
    log_p = norm.logpdf(z).sum(axis=-1) + log_x.sum(axis=(-2, -1))
    return log_p, norm.logpdf(z, loc, scale).sum(axis=-1)


def in_pyro(theta, phi):
    """For Pyro, with networks of torch."""
    import pyro
    import torch
    from pyro import distributions as dist
    from torch.nn import Conv2d, ConvTranspose2d, Flatten, Linear, ReLU, Sequential, Unflatten

    decoder = Sequential(
        Linear(NUM_LATENTS, 2 * 2 * 32),
        ReLU(),
        Unflatten(-1, (32, 2, 2)),
        ConvTranspose2d(32, 16, 4, stride=2, padding=1),
        ReLU(),
        ConvTranspose2d(16, 1, 4, stride=2, padding=1),
    )
    encoder = Sequential(
        Conv2d(1, 16, 4, stride=2, padding=1),
        ReLU(),
        Conv2d(16, 32, 4, stride=2, padding=1),
        ReLU(),
        Flatten(),
        Linear(2 * 2 * 32, 2 * NUM_LATENTS),
    )
    # The weights of flax, which has channels last and does not flip the kernels of transposed convolutions.
    in_theta, in_phi = theta["decoder$params"], phi["encoder$params"]
    for layer, start, convert in (
        (
            decoder[0],
            in_theta["Dense_0"],
            lambda w: w.reshape(-1, 2, 2, 32).transpose(3, 1, 2, 0).reshape(2 * 2 * 32, -1),
        ),
        (decoder[3], in_theta["ConvTranspose_0"], lambda w: w[::-1, ::-1].transpose(2, 3, 0, 1)),
        (decoder[5], in_theta["ConvTranspose_1"], lambda w: w[::-1, ::-1].transpose(2, 3, 0, 1)),
        (encoder[0], in_phi["Conv_0"], lambda w: w.transpose(3, 2, 0, 1)),
        (encoder[2], in_phi["Conv_1"], lambda w: w.transpose(3, 2, 0, 1)),
        (
            encoder[5],
            in_phi["Dense_0"],
            lambda w: w.reshape(2, 2, 32, -1).transpose(3, 2, 0, 1).reshape(-1, 2 * 2 * 32),
        ),
    ):
        layer.weight.data = torch.tensor(convert(np.array(start["kernel"])).copy())
        layer.bias.data = torch.zeros_like(layer.bias)  # as in flax

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(NUM_LATENTS), 1.0).to_event(1))
            logits = decoder(z.reshape(-1, NUM_LATENTS)).reshape(*z.shape[:-1], 8, 8)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x[:, None]).chunk(2, dim=-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide
