"""`init` of programs that branch runs a handful of particles, however many a step has, and meets rare branches too."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import rws_jax

WAYS = [
    pytest.param({}, True, id="branching sites"),
    pytest.param({"vectorize_particles": False}, False, id="one by one"),
]


def programs(annotated):
    """A branch of probability 0.001, and one of 0.01 within another; `runs` counts."""
    runs = []
    infer = {"branching": annotated}

    def model(x):
        runs.append(x)
        branch = numpyro.sample("branch", dist.Categorical(jnp.array([0.6, 0.399, 0.001])), infer=infer)
        mu = numpyro.param("rare", 0.3) if branch == 2 else numpyro.param("mu", 0.2)
        if branch == 1:
            numpyro.sample("inner", dist.Bernoulli(0.5), infer=infer)
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        numpyro.param("logits", jnp.zeros(3))
        branch = numpyro.sample("branch", dist.Categorical(jnp.array([0.6, 0.399, 0.001])), infer=infer)
        if branch == 1 and numpyro.sample("inner", dist.Bernoulli(0.01), infer=infer):
            numpyro.param("rarer", 0.1)

    return model, guide, runs


@pytest.mark.parametrize(("options", "annotated"), WAYS)
def test_init_runs_a_handful_of_particles_and_finds_all_parameters(options, annotated):
    model, guide, runs = programs(annotated)
    num_runs = []
    for num_particles in (2, 1000):
        rws = rws_jax.make_step(model, guide, num_particles=num_particles, **options)
        runs.clear()
        state = rws.init(jax.random.key(0), 1.3)
        num_runs.append(len(runs))
        assert state.theta.keys() == {"mu", "rare"}
        assert state.phi.keys() == {"logits", "rarer"}
    assert num_runs[0] == num_runs[1] <= 16
    params = rws.get_params(state, 1.3)
    assert {name: float(params[name]) for name in ("rare", "rarer")} == pytest.approx({"rare": 0.3, "rarer": 0.1})


def test_branches_that_cannot_be_taken_are_not_run():
    """A loop that is sure to end at its third round; a program need not be prepared for more."""

    def program(x, draws_data):
        depth, stops = 0, 0
        scales = [numpyro.param("guide", 1.0)] if not draws_data else [1.0, 2.0, 3.0]
        while not stops:
            stops = numpyro.sample(f"stops_{depth}", dist.Bernoulli([0.9, 0.5, 1.0][depth]), infer={"branching": True})
            depth += 1
        if draws_data:
            numpyro.sample("x", dist.Normal(numpyro.param(f"loc_{depth}", 0.0), scales[depth - 1]), obs=x)

    rws = rws_jax.make_step(lambda x: program(x, True), lambda x: program(x, False))
    assert rws.init(jax.random.key(0), 1.3).theta.keys() == {"loc_1", "loc_2", "loc_3"}


def test_counts_without_an_end_are_tried_from_zero_on():
    def model(x):
        count = numpyro.sample("count", dist.Poisson(0.1), infer={"branching": True})
        numpyro.sample("x", dist.Normal(numpyro.param(f"loc_{min(int(count), 2)}", 0.0), 1.0), obs=x)

    def guide(x):
        numpyro.sample("count", dist.Poisson(numpyro.param("rate", 0.1)), infer={"branching": True})

    theta = rws_jax.make_step(model, guide).init(jax.random.key(0), 1.3).theta
    assert theta.keys() == {"loc_0", "loc_1", "loc_2"}


def test_many_sites_that_do_not_branch_are_not_all_tried():
    """One by one, every site might branch."""
    runs = []

    def program(logit, is_model):
        runs.append(is_model)
        for i in range(12):
            numpyro.sample(f"z_{i}", dist.Bernoulli(logits=logit))
        if is_model:
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=0.3)

    model, guide = lambda: program(0.0, True), lambda: program(numpyro.param("logit", 0.0), False)
    rws_jax.make_step(model, guide, vectorize_particles=False, num_particles=1000).init(jax.random.key(0))
    assert sum(runs) <= 7


def test_a_mismatch_in_a_rare_branch_is_found_by_init():
    model, *_ = programs(True)

    def without_inner(x):
        branch = numpyro.sample("branch", dist.Categorical(logits=jnp.zeros(3)), infer={"branching": True})
        numpyro.param("a", 0.0 * branch)

    with pytest.raises(ValueError, match="latent site 'inner' of the model is missing from the guide"):
        rws_jax.make_step(model, without_inner).init(jax.random.key(2), 1.3)
