"""The demo, ``python -m rws_jax``: a sigmoid belief network learns handwritten digits.

Model: 64 pixels <- 200 <- 50 units, all of them binary, so that no latent can be reparameterised. The guide is the
recognition network 64 -> 200 -> 50.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.nn.initializers import glorot_uniform
from numpyro.handlers import seed, uncondition
from numpyro.infer import Predictive
from tqdm import tqdm

import rws_jax

BATCH_SIZE = 100
NUM_TRAIN = 1400
LEARNING_RATE = 1e-2
STEPS_PER_BLOCK = 50  # steps inside one lax.scan, between two updates of the progress bar
BAR = "{desc}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # fits into 80 columns


def model(images: jax.Array) -> None:
    """p(h2) p(h1 | h2) p(x | h1), everything binary."""
    prior = numpyro.param("prior", jnp.zeros(50))
    with numpyro.plate("data", len(images)):
        h2 = numpyro.sample("h2", dist.Bernoulli(logits=prior).to_event(1))
        h1 = numpyro.sample("h1", dist.Bernoulli(logits=affine("p1", h2, 200)).to_event(1))
        logits = numpyro.deterministic("logits", affine("p0", h1, 64))
        numpyro.sample("images", dist.Bernoulli(logits=logits).to_event(1), obs=images)


def guide(images: jax.Array) -> None:
    """q(h1 | x) q(h2 | h1)."""
    with numpyro.plate("data", len(images)):
        h1 = numpyro.sample("h1", dist.Bernoulli(logits=affine("q1", images, 200)).to_event(1))
        numpyro.sample("h2", dist.Bernoulli(logits=affine("q2", h1, 50)).to_event(1))


def affine(name: str, x: Any, size: int) -> jax.Array:
    """One layer; numpyro.param makes its weights trainable."""
    weight: Any = numpyro.param(f"{name}_weight", lambda key: glorot_uniform()(key, (x.shape[-1], size)))
    bias: Any = numpyro.param(f"{name}_bias", jnp.zeros(size))
    return x.astype(float) @ weight + bias[None]


def load_digits() -> tuple[jax.Array, jax.Array]:
    """Scikit-learn's 1,797 images of 8x8 pixels, black where darker than 7 of 16; a fixed split."""
    try:
        from sklearn import datasets
    except ImportError:
        fail('the demo needs scikit-learn; install it by: python -m pip install "rws_jax[demo]"')
    digits: Any = datasets.load_digits()
    images = np.random.default_rng(0).permutation(digits.data > 7)
    return jnp.asarray(images[:NUM_TRAIN], float), jnp.asarray(images[NUM_TRAIN:], float)


def train(
    images: jax.Array, *, steps: int, num_particles: int, insomnia: float, seed: int
) -> tuple[dict[str, Any], rws_jax.RWSInfo, str]:
    """Parameters, the info of every step, and steps per second."""
    adam = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    options = {"num_particles": num_particles, "insomnia": insomnia, "num_sleep_particles": 1}
    rws = rws_jax.make_step(model, guide, theta_optimizer=adam, phi_optimizer=adam, **options)
    init_key, data_key = jax.random.split(jax.random.key(seed))
    state = rws.init(init_key, images[:BATCH_SIZE])

    @jax.jit
    def block(state: rws_jax.RWSState, keys: jax.Array) -> tuple[rws_jax.RWSState, rws_jax.RWSInfo]:
        def body(state: rws_jax.RWSState, key: jax.Array) -> tuple[rws_jax.RWSState, rws_jax.RWSInfo]:
            batch = jax.random.choice(key, images, (BATCH_SIZE,), replace=False)
            return rws.step(state, batch)

        return jax.lax.scan(body, state, keys)

    infos, seconds = [], []
    data_keys = jax.random.split(data_key, steps)
    with tqdm(total=steps, desc="compiling: ", bar_format=BAR) as bar:
        for keys in (data_keys[i : i + STEPS_PER_BLOCK] for i in range(0, steps, STEPS_PER_BLOCK)):
            start = time.perf_counter()
            state, info = block(state, keys)
            bar.set_description("training", refresh=not infos)
            bound, ess = map(float, (-info.wake_theta_loss.mean() / BATCH_SIZE, info.ess_mean.mean()))  # waits
            seconds.append(time.perf_counter() - start)
            infos.append(info)
            bar.set_postfix_str(f"bound {bound:.2f} nats/image, ESS {ess:.1f} of {num_particles}", refresh=False)
            bar.update(len(keys))
    params = rws.get_params(state, images[:BATCH_SIZE])
    return params, jax.tree.map(lambda *x: jnp.concatenate(x), *infos), speed(seconds, steps)


def speed(seconds: list[float], steps: int) -> str:
    """Steps per second, by blocks. The first has been compiled, and so has a last one of another length."""
    full = seconds[1 : steps // STEPS_PER_BLOCK]
    too_few = f"not measured, which takes {2 * STEPS_PER_BLOCK} steps at least"
    return f"{len(full) * STEPS_PER_BLOCK / sum(full):.0f}" if full else too_few


def held_out_nll(params: dict[str, Any], images: jax.Array, num_particles: int = 1000) -> float:
    """Negative log-likelihood in nats per image, by importance sampling from the guide."""

    @jax.jit
    def nll(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, key = pair
        programs = (seed(program, k) for program, k in zip((model, guide), jax.random.split(key), strict=True))
        return rws_jax.wake_theta_loss(params, params, *programs, image[None], num_particles=num_particles)

    return float(jnp.mean(jax.lax.map(nll, (images, jax.random.split(jax.random.key(1), len(images))))))


def independent_pixels_nll(train_images: jax.Array, images: jax.Array) -> float:
    """The same for the baseline: one probability per pixel, with Laplace's add-one rule."""
    probs = (jnp.sum(train_images, axis=0) + 1) / (len(train_images) + 2)
    return float(-jnp.mean(jnp.sum(dist.Bernoulli(probs[None]).log_prob(images), axis=1)))


def plot(path: Path, params: dict[str, Any], images: jax.Array, infos: rws_jax.RWSInfo, baseline: float) -> None:
    """Learning curves of model and guide, and digits dreamt by the model beside real ones."""
    import matplotlib.pyplot as plt

    figure, ((model_axes, guide_axes), (dreamt_axes, real_axes)) = plt.subplots(
        2, 2, figsize=(10, 7.2), height_ratios=(1, 1.15), layout="constrained"
    )
    curve(model_axes, "wake-theta", infos.wake_theta_loss)
    model_axes.axhline(baseline, color="grey", linestyle=":", label="independent pixels, held out")
    model_axes.set(title="Model: minus the bound", ylim=(None, 1.2 * baseline))
    curve(guide_axes, "wake-phi", infos.wake_phi_loss)
    curve(guide_axes, "sleep-phi", infos.sleep_phi_loss)
    guide_axes.set(title="Guide: cross-entropy")
    for axes in (model_axes, guide_axes):
        axes.set(xlabel="step", ylabel="nats per image")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)

    dreams = Predictive(uncondition(model), params=params, num_samples=1)(jax.random.key(2), images[:60])
    mosaic(dreamt_axes, "Dreamt by the model (pixel probabilities)", jax.nn.sigmoid(dreams["logits"][0]))
    mosaic(real_axes, "Handwritten, held out", images[:60])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curve(axes: Any, name: str, loss: jax.Array | None) -> None:
    """A loss against steps, averaged over blocks, or noise would hide the trend."""
    if loss is not None:
        block = max(1, len(loss) // 150)
        means = loss[: len(loss) // block * block].reshape(-1, block).mean(axis=1) / BATCH_SIZE
        axes.plot((jnp.arange(len(means)) + 0.5) * block, means, label=name)


def mosaic(axes: Any, title: str, images: jax.Array) -> None:
    """Sixty images, ten in a row."""
    tiles = jnp.pad(images.reshape(6, 10, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.5)
    axes.imshow(tiles.transpose(0, 2, 1, 3).reshape(60, 100), cmap="gray_r", vmin=0, vmax=1)
    axes.set(title=title)
    axes.axis("off")


def fail(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    print(f"python -m rws_jax: error: {message}", file=sys.stderr)
    raise SystemExit(2)


class Parser(argparse.ArgumentParser):
    """Reports a bad option in one line."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def number(kind: type, low: float, high: float, expected: str) -> Callable[[str], Any]:
    """An option's type: a number within bounds."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def main() -> None:
    """Train, evaluate on held-out images, and draw; Ctrl-C ends it with one line and the exit code of shells."""
    try:
        run(parse())
    except KeyboardInterrupt:
        print("python -m rws_jax: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = Parser(prog="python -m rws_jax", description="Train a sigmoid belief network on handwritten digits.")
    integer = "an integer of at least {}".format
    parser.add_argument("--steps", type=number(int, 1, math.inf, integer(1)), default=3000, help="default 3000")
    parser.add_argument("--num-particles", type=number(int, 2, math.inf, integer(2)), default=10, help="default 10")
    parser.add_argument(
        "--insomnia",
        type=number(float, 0, 1, "a number from 0 to 1"),
        default=0.5,
        help="share of wake-phi in the guide's loss, the rest being sleep-phi; default 0.5",
    )
    parser.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1, "an integer from 0 to 4294967295"), default=0, help="default 0"
    )
    folder = "rws_jax_demo"
    parser.add_argument("--out", type=Path, default=Path(folder), help=f"folder for the picture; default {folder}")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """The demo itself."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"argument --out: cannot make the folder {str(options.out)!r}: {error.strerror}")

    train_images, test_images = load_digits()
    params, infos, rate = train(train_images, **{k: v for k, v in vars(options).items() if k != "out"})
    nll = held_out_nll(params, test_images)
    baseline = independent_pixels_nll(train_images, test_images)

    device = jax.devices()[0]
    print(f"device                      {device.platform}: {device.device_kind}")
    print(f"steps per second            {rate}")
    print(f"held-out NLL                {nll:.2f} nats per image (importance sampling, K = 1,000)")
    print(f"  independent pixels        {baseline:.2f} nats per image")
    if not bool(jnp.all(infos.finite)):
        print(f"steps left out              {int(jnp.sum(~infos.finite))} (not finite)")
    try:
        path = options.out / "digits.png"
        plot(path, params, test_images, infos, baseline)
        print(f"picture                     {path}")
    except ImportError:
        print('picture                     none: python -m pip install "rws_jax[demo]" brings matplotlib')


if __name__ == "__main__":
    main()
