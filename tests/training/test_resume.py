"""Training that is saved and goes on: bit for bit, in a new process, and only where it belongs."""

import os
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import orbax.checkpoint as ocp
import pytest

import rws_jax
from tests import models
from tests.checks.test_errors import check
from tests.training import resumed

pytestmark = [
    pytest.mark.usefixtures("allow_key_reuse"),
    pytest.mark.filterwarnings("ignore:the guide .* reads no data"),
]


@pytest.mark.slow
def test_a_new_process_goes_on_bit_for_bit(tmp_path):
    """Both optimizers, the key, a schedule of insomnia and one of the learning rate; 4 steps and 4 more are 8."""
    rws, x = resumed.make(), models.BINARY_DATA
    state, _ = resumed.train(rws, rws.init(jax.random.key(0), x))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", state)
    (tmp_path / "pickle").write_bytes(pickle.dumps(state))
    leaves = jax.tree.leaves(state._replace(rng_key=jax.random.key_data(state.rng_key)))
    np.savez(tmp_path / "leaves.npz", *leaves)

    environment = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    subprocess.run([sys.executable, "-m", "tests.training.resumed", str(tmp_path)], check=True, env=environment)
    state, infos = resumed.train(rws, state)
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves((resumed.without_key(state), infos))]
    for how in ("orbax", "pickle", "leaves"):
        with np.load(tmp_path / f"{how}_after.npz") as after:
            chex.assert_trees_all_equal([after[name] for name in after], expected)


# what does not belong


def model(x, size=2):
    loc = numpyro.param("loc", jnp.zeros(size))
    z = numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
    numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)


def guide(x, size=2):
    loc = numpyro.param("q_loc", jnp.zeros(size))
    numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def larger_model(x):
    model(x, size=3)


def larger_guide(x):
    guide(x, size=3)


def model_with_more(x):
    numpyro.param("more", 0.0)
    model(x)


MOMENTUM = optax.sgd(0.1, momentum=0.9)
SAVED = rws_jax.make_step(model, guide, phi_optimizer=MOMENTUM)


@pytest.fixture(scope="module")
def saved():
    return SAVED.init(jax.random.key(0), 1.0)


def make(model=model, guide=guide, phi_optimizer=MOMENTUM, **options):
    return rws_jax.make_step(model, guide, phi_optimizer=phi_optimizer, **options)


OTHERS = {
    "another parameter": (
        make(model_with_more),
        ("theta['more'] float32[], theta_opt_state[0].mu['more'] float32[]", "theta['more'] absent"),
    ),
    "one parameter fewer": (
        make(lambda x: numpyro.handlers.block(model, hide=["loc"])(x), model_has_params=False, insomnia=0.0),
        ("theta['loc'] absent", "theta['loc'] float32[2]"),
    ),
    "another shape": (
        make(larger_model, larger_guide),
        ("theta['loc'] float32[3]", "theta['loc'] float32[2]", "and 1 more"),
    ),
    "another optimizer": (
        make(phi_optimizer=optax.adam(0.1)),
        ("phi_opt_state[0].count int32[]", "phi_opt_state[0].trace['q_loc'] float32[2]"),
    ),
    "one by one, another shape": (
        make(larger_model, larger_guide, vectorize_particles=False),
        ("theta['loc'] float32[3]", "theta['loc'] float32[2]"),
    ),
    "one by one, another optimizer": (
        make(phi_optimizer=optax.adam(0.1), vectorize_particles=False),
        ("phi_opt_state[0].count int32[]", "phi_opt_state[0].trace['q_loc'] float32[2]"),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_programs_or_optimizers_is_refused_with_the_paths_that_differ(name, saved):
    rws, words = OTHERS[name]
    with pytest.raises(ValueError, match="the state is of another model, guide, optimizer or precision") as error:
        rws.step(saved, 1.0)
    check(error, ValueError, *words)


@pytest.mark.floors
def test_trees_that_lost_their_types_are_refused(saved):
    """As orbax restores them without a tree to restore into."""
    plain = saved._replace(phi_opt_state=[{"trace": saved.phi_opt_state[0].trace}, None])
    with pytest.raises(ValueError, match="the state is of another") as error:
        SAVED.step(plain, 1.0)
    check(error, ValueError, "phi_opt_state[0]['trace']['q_loc']", "restore into the tree of rws.init")
    with pytest.raises(ValueError, match="has lost the types of its containers") as error:
        SAVED.step(saved._replace(phi_opt_state=list(saved.phi_opt_state)), 1.0)
    check(error, ValueError, "phi_opt_state of the state", "PyTreeDef((CustomNode", "PyTreeDef([CustomNode")
    with pytest.raises(TypeError, match="is not a state"):
        SAVED.step(saved._asdict(), 1.0)


@pytest.mark.parametrize("rws", [SAVED, make()], ids=["after init", "before"])
def test_a_key_that_is_none_is_refused(rws, saved):
    with pytest.raises(TypeError, match="the key of the state is not a random key"):
        rws.step(saved._replace(rng_key=jnp.zeros(3)), 1.0)


def test_states_of_several_seeds_need_a_step_that_is_mapped_over(saved):
    states = jax.vmap(lambda key: SAVED.init(key, 1.0))(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="the state is of another") as error:
        SAVED.step(states, 1.0)
    check(error, ValueError, "theta['loc'] float32[2, 2]", "jax.vmap(rws.step, in_axes=(0, None))")


@pytest.mark.floors
def test_a_state_goes_on_where_init_was_never_called(saved):
    """Options that leave no trace in the state may change, and so may the kind of key."""
    state, info = make(insomnia=0.5, num_particles=7).step(saved, 1.0)
    assert info.finite
    SAVED.step(state._replace(rng_key=jax.random.PRNGKey(0)), 1.0)
    on_host = jax.tree.map(np.asarray, saved._replace(rng_key=jax.random.PRNGKey(0)))
    make().step(on_host, 1.0)
