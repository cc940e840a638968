"""`describe`: what it says of programs is what a step makes of them, and its errors are those of `init`."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import condition, mask, seed
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import rws_jax
from tests import models
from tests.checks.test_errors import check

X = jnp.linspace(-3.0, 3.0, 400)
pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")


def mixture(x):
    weight = numpyro.param("weight", 0.5, constraint=dist.constraints.unit_interval)
    loc = numpyro.param("loc", jnp.array([-1.0, 1.0]))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(weight))
        numpyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def mixture_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("slope", 0.0) * x))


MIXTURE = """\
model  mixture
guide  mixture_guide
units  400, the elements of plate 'data': each has weights of its own
sleep  dreams x; the guide reads it from argument 'x'

latents  shape   plates  support  model      guide
  z      (400,)  data    0 or 1   Bernoulli  Bernoulli

data  shape   plates  support       model
  x   (400,)  data    real numbers  Normal

parameters  shape  numbers  values                    program
  weight    ()     1        real numbers from 0 to 1  model
  loc       (2,)   2        real numbers              model
  slope     ()     1        real numbers              guide"""


def images(batch, is_seen, robust=False):
    w = numpyro.param("w", jnp.zeros((2, 3)))
    with numpyro.plate("data", 1000, subsample_size=4):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with mask(mask=is_seen):
            pixels = dist.Bernoulli(logits=z @ w).to_event(1)
            numpyro.sample("pixels", pixels, obs=batch["pixels"])


def images_guide(batch, is_seen, robust=False):
    w = numpyro.param("v", jnp.zeros((3, 2)))
    scale = numpyro.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
    with numpyro.plate("data", 1000, subsample_size=4):
        numpyro.sample("z", dist.Normal(batch["pixels"] @ w, scale).to_event(1))


IMAGES = """\
model      images
guide      images_guide
units      4, the elements of plate 'data': each has weights of its own
sleep      dreams pixels; the guide reads it from argument 'batch'['pixels']
minibatch  4 of 1000 elements of plate 'data'; losses count each 250 times
masked     3 of the 12 numbers of pixels, which play no part
static     robust = True: Python may branch on it, and each value compiles a step of its own

latents  shape   event  plates  support       model   guide
  z      (4, 2)  (2,)   data    real numbers  Normal  Normal

data      shape   event  plates  support  model
  pixels  (4, 3)  (3,)   data    0 or 1   Bernoulli

parameters  shape   numbers  values               program
  w         (2, 3)  6        real numbers         model
  v         (3, 2)  6        real numbers         guide
  scale     (2,)    2        real numbers from 0  guide"""


def branching(x):
    loc = numpyro.param("m", 1.0)
    if numpyro.sample("z", dist.Bernoulli(0.5), infer={"branching": True}) == 1:
        loc = loc + numpyro.sample("more", dist.Exponential(1.0))
    numpyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def branching_guide(x):
    b = numpyro.param("b", 0.0)
    if numpyro.sample("z", dist.Bernoulli(logits=b * x), infer={"branching": True}) == 1:
        numpyro.sample("more", dist.Normal(0.0, 1.0))


BRANCHING = """\
model      branching
guide      branching_guide
units      400, the data along data_axes: each has weights of its own; shapes are those of one datum
sleep      dreams x; the guide reads it from argument 'x'
branching  Python branches on z; what is below was met in 5 runs of the programs

latents  shape  support              model        guide
  z      ()     0 or 1               Bernoulli    Bernoulli
  more   ()     real numbers from 0  Exponential  Normal, wider: real numbers  in 3 of 5 runs

data  shape  support       model
  x   ()     real numbers  Normal

parameters  shape  numbers  values        program
  m         ()     1        real numbers  model
  b         ()     1        real numbers  guide"""


def test_a_mixture_in_words():
    text = rws_jax.describe(mixture, mixture_guide, X)
    assert text == MIXTURE
    assert repr(text) == str(text) == MIXTURE  # as a notebook shows it, and as it is printed


def test_a_minibatch_with_a_mask_and_a_flag_in_words():
    batch, is_seen = {"pixels": jnp.zeros((4, 3))}, jnp.array([True, True, False, True])
    assert rws_jax.describe(images, images_guide, batch, is_seen, robust=True) == IMAGES


def test_branching_programs_of_one_datum_in_words():
    assert rws_jax.describe(branching, branching_guide, X, data_axes=0) == BRANCHING


# Sentences on programs of many kinds


def joint(x):
    z = numpyro.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def joint_guide(x):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.5) * x, 1.0))


def regression(x, y):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(x @ w, numpyro.param("s", 1.0)), obs=y)


def improper(x):
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.factor("f", -(z**2))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shifted(x):
    z = numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0), 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=x + 1.0)


def shifted_guide(x):
    numpyro.sample("z", dist.Normal(numpyro.param("a", 0.0), 1.0))


SHARED = "a () 1 real numbers both: shared_params=True"


def simulator(n):
    z = numpyro.sample("z", dist.Uniform(0.0, 10.0))
    numpyro.sample("x", dist.Normal(z, 1.0))


def simulator_guide(n, observations=None):
    numpyro.sample("z", dist.Uniform(0.0, 5.0 + jnp.exp(-(observations["x"] ** 2))))


def with_state(x):
    seen = numpyro.primitives.mutable("seen", {"mean": 0.0})
    seen["mean"] = 0.9 * seen["mean"] + 0.1 * x.mean()
    mixture(x)


_conditioned = condition(models.hierarchical_model, data={"top": jnp.array(0.3)})
_two = jnp.ones((2, 3))
SENTENCES = {
    "one unit": (joint, joint_guide, (X,), {}, ["units  1, as there is no plate", "single weight for all 400 data"]),
    "warning": (joint, joint_guide, (X,), {}, ["warning  model and guide draw a batch of 400 outside of any plate."]),
    "hierarchical": (
        models.hierarchical_model, models.hierarchical_guide, (models.PLATE_X,), {},
        ["units  1, as 'top' is outside of plate 'data': a particle has a single weight for all 3 data"],
    ),
    "nested": (models.nested_model, models.nested_guide, (models.NESTED_X,), {}, ["2, the elements of plate 'rows'"]),
    "conditioned": (
        _conditioned, models.plate_guide, (models.PLATE_X,), {},
        ["3, the elements of plate 'data'", "constant  top, given by numpyro.handlers.condition"],
    ),
    "scaled": (models.scaled_model, models.plate_guide, (models.PLATE_X,), {}, ["density of x counts 0.5 times"]),
    "scan": (models.scan_model, models.scan_guide, (models.SCAN_X,), {}, ["units  1, as", "z      (4,)"]),
    "cond": (models.cond_model, models.cond_guide, (1.3,), {}, ["a single weight for all that is drawn"]),
    "auxiliary": (regression, AutoDiagonalNormal(regression), (_two, jnp.ones(2)), {}, ["Normal, auxiliary"]),
    "autoguide": (
        regression, AutoNormal(regression), (_two, jnp.ones(2)), {},
        ["sleep  dreams y, which the guide does not read", "warning  the guide 'AutoNormal' reads no data"],
    ),
    "improper": (
        improper, shifted_guide, (1.0,), {},
        ["sleep   impossible: sleep cannot dream from the model: site 'z' is an improper prior", "factor  f: terms of"],
    ),
    "unread": (shifted, shifted_guide, (1.0,), {}, ["impossible: sleep cannot hand its dreams", SHARED]),
    "function": (
        shifted, joint_guide, (1.0,), {"simulated_data_to_args": lambda sim, x: ((sim["y"] - 1.0,), {})},
        ["sleep  dreams y; the guide reads it from simulated_data_to_args"],
    ),
    "no data": (
        simulator, simulator_guide, (5,), {"observed_sites": ("x",)},
        ["wake   impossible: the programs raise TypeError", "reads it from observations['x']", "narrower: real"],
    ),
    "state": (with_state, mixture_guide, (X,), {}, ["state  seen: carried from step to step"]),
    "one by one": (branching, branching_guide, (1.0,), {"vectorize_particles": False}, ["1, as Python branches on"]),
}  # fmt: skip


@pytest.mark.parametrize("name", models.rows(SENTENCES, fast=["no data"]))
def test_sentences(name):
    model, guide, args, options, sentences = SENTENCES[name]
    text = " ".join(rws_jax.describe(model, guide, *args, **options).replace("\n", " ").split())
    for sentence in sentences:
        assert " ".join(sentence.split()) in text


def test_programs_that_do_not_fit_raise_the_error_of_init():
    no_guide = lambda x: None
    errors = []
    for function in (rws_jax.make_step(mixture, no_guide).init, None):
        with pytest.raises(ValueError, match="latent site 'z' of the model is missing") as error:
            function(jax.random.key(0), X) if function else rws_jax.describe(mixture, no_guide, X)
        check(error, ValueError, "numpyro.sample('z', ...)")
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    ("call", "kind", "word"),
    [
        (lambda: rws_jax.describe(seed(mixture, 0), mixture_guide, X), ValueError, "seeded already"),
        (lambda: rws_jax.describe(mixture, None, X), TypeError, "not callable"),
        (lambda: rws_jax.describe(mixture, mixture_guide, X, num_particles=3), TypeError, "no option 'num_particles'"),
        (lambda: rws_jax.describe(mixture, mixture_guide, X, observed_sites="x"), TypeError, "observed_sites"),
    ],
)
def test_wrong_calls_are_told(call, kind, word):
    with pytest.raises(kind) as error:
        call()
    check(error, kind, word)
