"""What must hold of the elements of a plate: they do not depend on one another, and both programs mask the same."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, seed
from numpyro.infer.autoguide import AutoNormal

import rws_jax
from tests import oracles
from tests.models import rows

pytestmark = pytest.mark.usefixtures("allow_rank_promotion", "allow_key_reuse")


def init(model, guide, *args, **options):
    return rws_jax.make_step(model, guide, **options).init(jax.random.key(0), *args)


def in_plate(num, data_of=lambda z: z, latent_of=lambda z: 0.5, *, infer=None):
    """A model of coins z, with later coins y and data x that depend on them."""

    def model(x):
        with numpyro.plate("t", num):
            z = numpyro.sample("z", dist.Bernoulli(0.5), infer=infer)
            numpyro.sample("y", dist.Normal(latent_of(z), 1.0))
            numpyro.sample("x", dist.Normal(data_of(z), 0.7), obs=x)

    return model


def coins(num, latent_of=lambda z: 0.5):
    def guide(x):
        with numpyro.plate("t", num):
            z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("b", 0.0)))
            numpyro.sample("y", dist.Normal(latent_of(z), 1.0))

    return guide


forward, backward = lambda z: jnp.cumsum(z) * 1.0, lambda z: jnp.cumsum(z[::-1])[::-1] * 1.0
shifted = lambda z: jnp.roll(z, 1) * 1.0
DEPENDENT = {
    "cumulative sum": (2, {"data_of": forward}, {}, "'x' of the model"),
    "from the end": (2, {"data_of": backward}, {}, "'x' of the model"),
    "of many": (100, {"data_of": forward}, {}, "'x' of the model"),
    "all read the first": (30, {"data_of": lambda z: z[:1] * 5.0}, {}, "'x' of the model"),
    "mean": (3, {"data_of": lambda z: jnp.mean(z) + 0.0 * z}, {}, "'x' of the model"),
    "latents of the model": (5, {"latent_of": shifted}, {}, "'y' of the model"),
    "latents of the guide": (5, {}, {"latent_of": shifted}, "'y' of the guide"),
}


@pytest.mark.parametrize("name", rows(DEPENDENT, fast=["cumulative sum", "latents of the guide"]))
def test_elements_of_a_plate_that_depend_on_one_another_are_refused(name):
    num, of_model, of_guide, where = DEPENDENT[name]
    with pytest.raises(ValueError, match=rf"(?s)depend on one another at site {where}.*to_event.*scan"):
        init(in_plate(num, **of_model), coins(num, **of_guide), jnp.zeros(num))


def test_elements_that_do_not_are_accepted():
    """They may depend on all data, and on their own latents."""
    model, guide = in_plate(5, lambda z: 2.0 * z), coins(5, lambda z: -1.0 * z)
    init(model, lambda x: guide(x - x.mean()), jnp.arange(5.0))
    init(in_plate(5, forward), lambda x: coins(5, lambda z: x)(x), jnp.zeros(5), insomnia=0.0)  # sleep has no weights


def chains(read):
    """Three steps of two chains side by side."""

    def body(carry, x_t):
        with numpyro.plate("chains", 2):
            z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(2.0 * read(carry) - 1.0)))
            if x_t is not None:
                numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x_t)
        return 1.0 * z, None

    return lambda x: scan(body, jnp.zeros(2), x)


def of_latents(x):
    def body(carry, _):
        with numpyro.plate("chains", 2):
            z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(carry)))
        return 1.0 * z, None

    scan(body, jnp.zeros(2), x)


@pytest.mark.slow
def test_chains_that_read_one_another_are_refused():
    init(chains(lambda carry: carry), of_latents, jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="depend on one another at site 'z' of the model"):
        init(chains(lambda carry: carry[::-1]), of_latents, jnp.zeros((3, 2)))


X, SEEN = jnp.array([1.0, 0.0, 1.0]), jnp.array([True, False, True])


def partly_observed(x, seen):
    with numpyro.plate("data", 3):
        numpyro.sample("x", dist.Bernoulli(0.3), obs=x, obs_mask=seen)


def guess(x, seen):
    with numpyro.plate("data", 3):
        numpyro.sample("x_unobserved", dist.Bernoulli(0.3))


def guess_masked(x, seen):
    with mask(mask=~seen):
        guess(x, seen)


def padded(x, seen):
    with numpyro.plate("data", 3), mask(mask=seen):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def posterior(x, seen):
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Normal(x / 2.0, jnp.sqrt(0.5)))


def posterior_masked(x, seen):
    with mask(mask=seen):
        posterior(x, seen)


def posterior_masked_inside(x, seen):
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Normal(x[:, None] / 2.0, jnp.sqrt(0.5)).mask(seen[:, None]).to_event(1))


def padded_outside(x, seen):
    with numpyro.plate("data", 3), mask(mask=seen):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand((1,)).to_event(1))
        numpyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)


MASKED = {
    "obs_mask": (partly_observed, guess, "'x_unobserved'.*1 of 3 .*model, 3 of 3 .*guide.*mask=~obs_mask"),
    "model alone": (padded, posterior, "'z'.*2 of 3 .*model, 3 of 3 .*guide"),
    "guide alone": (lambda x, seen: padded(x, jnp.ones(3, bool)), posterior_masked, "'z'.*3 of 3 .*2 of 3"),
    "others": (padded, lambda x, seen: posterior_masked(x, ~seen), "'z'.*2 of 3 .*1 of 3"),
}


@pytest.mark.parametrize("name", rows(MASKED, fast=["obs_mask"]))
def test_masks_of_latents_must_be_those_of_both_programs(name):
    model, guide, words = MASKED[name]
    with pytest.raises(ValueError, match=rf"(?s)masks differ at latent site {words}"):
        init(model, guide, X, SEEN)
    with pytest.raises(ValueError, match="masks differ"):
        rws_jax.wake_theta_loss({}, {}, seed(model, 0), seed(guide, 1), X, SEEN)


def test_a_mask_that_only_one_program_has_is_refused_where_it_is_traced():
    loss = lambda seen: rws_jax.wake_theta_loss({}, {}, seed(padded, 0), seed(posterior, 1), X, seen)
    with pytest.raises(ValueError, match=r"(?s)masks differ at latent site 'z'.*a mask in the model, no mask"):
        jax.jit(loss)(SEEN)


def test_an_automatic_guide_of_what_is_partly_observed_is_refused():
    def model(x, seen):
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=seen)

    with pytest.raises(ValueError, match=r"(?s)masks differ at latent site 'x_unobserved'.*AutoNormal cannot"):
        init(model, AutoNormal(model), X, SEEN)


OF_SEEN = dist.Normal(0.0, jnp.sqrt(2.0)).log_prob(X)[SEEN].sum()


@pytest.mark.parametrize(
    ("model", "guide", "exact"),
    [
        (partly_observed, guess_masked, 2 * jnp.log(0.3)),
        pytest.param(padded, posterior_masked, OF_SEEN, marks=pytest.mark.slow),
        pytest.param(padded_outside, posterior_masked_inside, OF_SEEN, marks=pytest.mark.slow),
    ],
    ids=["obs_mask", "padded", "masked inside and outside of an event"],
)
def test_the_bound_under_equal_masks_is_the_evidence_of_what_is_seen(model, guide, exact):
    """The guide is the posterior, and the mask an argument."""
    init(model, guide, X, SEEN)
    programs = oracles.seeded(model, guide)
    loss = jax.jit(lambda seen: rws_jax.wake_theta_loss({}, {}, *programs, X, seen))
    assert jnp.allclose(-loss(SEEN), exact, rtol=1e-5)
