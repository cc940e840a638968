"""Data and particles over many devices: the same numbers, and no more communication than they need."""

import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import rws_jax
from rws_jax import __main__ as demo
from tests import models
from tests.checks.test_errors import check
from tests.execution import two_processes
from tests.oracles import seeded

P = PartitionSpec
X = jnp.tile(models.BINARY_DATA, 8)
NUM_PARTICLES = 8
pytestmark = pytest.mark.usefixtures("allow_key_reuse", "allow_rank_promotion")


def mesh_of(num_data, num_particles, axis_type=AxisType.Auto):
    devices = np.array(jax.devices()[: num_data * num_particles]).reshape(num_data, num_particles)
    return Mesh(devices, ("data", "particles"), axis_types=(axis_type,) * 2)


def train(mesh, num_steps=3, by_keyword=False, **options):
    """Final parameters and stacked infos, of data and particles over `mesh` if there is one."""
    x, sgd = X, optax.sgd(0.01)
    if mesh is not None:
        x = jax.device_put(X, NamedSharding(mesh, P("data")))
        options["particle_sharding"] = NamedSharding(mesh, P("particles"))
    rws = rws_jax.make_step(
        models.binary_model,
        models.binary_guide,
        **{"num_particles": NUM_PARTICLES, "theta_optimizer": sgd, "phi_optimizer": sgd, "insomnia": 0.5, **options},
    )
    call = (lambda function, first: function(first, x=x)) if by_keyword else lambda function, first: function(first, x)
    state = call(rws.init, jax.random.key(0))
    state, infos = jax.lax.scan(lambda state, _: call(rws.step, state), state, length=num_steps)
    return jax.device_get(((state.theta, state.phi), infos, call(rws.get_params, state)))


@pytest.fixture(scope="module")
def on_one_device():
    with jax.debug_key_reuse(False):
        return train(None)


SLOW = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8), (2, 2)]


@pytest.mark.parametrize("shape", [*(pytest.param(shape, marks=pytest.mark.slow) for shape in SLOW), (2, 4)])
def test_any_number_of_devices_gives_the_same_numbers(shape, on_one_device):
    chex.assert_trees_all_close(train(mesh_of(*shape)), on_one_device, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("in_context", [False, True])
def test_axes_may_be_explicit_which_is_the_default_of_jax(in_context, by_keyword, on_one_device):
    mesh = mesh_of(2, 4, AxisType.Explicit)
    with jax.set_mesh(mesh) if in_context else nullcontext():
        found = train(mesh, by_keyword=by_keyword)
    chex.assert_trees_all_close(found, on_one_device, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_states_on_many_devices_can_be_made_by_vmap_and_jit(axis_type, in_context):
    """And by nobody in this process: a step then asks for the shapes of one that `init` would make."""
    mesh = mesh_of(2, 2, axis_type)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.set_mesh(mesh) if in_context else nullcontext():
        rws = rws_jax.make_step(models.binary_model, models.binary_guide)
        states = jax.vmap(lambda rng_key: rws.init(rng_key, x))(keys)
        _, infos = jax.jit(jax.vmap(rws.step, in_axes=(0, None)))(states, x)
        # JAX asks for the context where nothing that a function returns depends on the arguments on a mesh.
        init = jax.jit(rws.init) if in_context or axis_type == AxisType.Auto else rws.init
        state = init(keys[1], x)
        _, info = rws_jax.make_step(models.binary_model, models.binary_guide).step(state, x)
    assert jnp.allclose(jax.device_get(infos.phi_loss)[1], jax.device_get(info.phi_loss), rtol=1e-5)


@pytest.mark.slow
def test_chunks_may_be_over_many_devices(on_one_device):
    found = train(mesh_of(2, 2), chunk_size=6, num_particles=8)
    chex.assert_trees_all_close(found, on_one_device, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_processes_each_with_half_of_the_data_train_as_one(tmp_path):
    """Over the loopback interface; 20 steps, the same parameters in both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    path = tmp_path / "x.npy"
    np.save(path, X)
    command = [sys.executable, "-m", "tests.execution.two_processes"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # one device in each
    workers = [subprocess.Popen([*command, str(i), address, str(path)], env=environment) for i in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    theta, phi = two_processes.train(X)
    for i in range(2):
        found = dict(np.load(f"{path}.{i}.npz"))
        chex.assert_trees_all_close(found, theta | phi, rtol=1e-4, atol=1e-5)


# communication


def collectives(mesh_shape, **options):
    """All collectives of a compiled step of the demo's network, each as a list of the shapes that it is over."""
    mesh, x = mesh_of(*mesh_shape), jnp.zeros((64, 64))
    sharding = NamedSharding(mesh, P("particles"))
    rws = rws_jax.make_step(demo.model, demo.guide, num_particles=16, particle_sharding=sharding, **options)
    state = jax.eval_shape(rws.init, jax.random.key(0), x)
    place = lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
    state = jax.tree.map(lambda leaf: place(leaf, P()), state)
    hlo = rws.step.lower(state, place(x, P("data"))).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", hlo)
    assert {kind for _, kind in found} == {"all-reduce"}  # nothing is gathered
    return [re.findall(r"[a-z]+\d*\[([\d,]*)\]", shapes) for shapes, _ in found]


@pytest.mark.floors
def test_data_over_devices_cost_one_reduction_of_gradients():
    reductions = collectives((8, 1))
    gradients = [shapes for shapes in reductions if any(shapes)]
    assert len(gradients) == 1
    assert set(gradients[0]) >= {"200,64", "50,200", "64,200", "200,50"}  # weights of model and guide
    assert len(reductions) <= 5  # the others are scalars of the info


def test_chunks_have_reductions_of_their_own():
    """In a loop over 4 chunks, one of the gradients of model and guide."""
    reductions = collectives((8, 1), chunk_size=4)
    gradients = [shapes for shapes in reductions if {"200,64", "50,200", "64,200", "200,50"} & set(shapes)]
    assert len(gradients) == 1


def test_particles_over_devices_cost_reductions_of_units_and_of_gradients():
    """Nothing that is reduced has an axis of particles, of which there are 16, two on each device."""
    reductions = collectives((1, 8))
    sizes = {shape for shapes in reductions for shape in shapes}
    per_unit = {"", "64"}
    gradients = {"200,64", "200", "50,200", "50", "64,200", "200,50"}
    assert sizes <= per_unit | gradients
    assert sum("64" in shapes or "" in shapes for shapes in reductions) <= 6
    assert sum(bool(gradients & set(shapes)) for shapes in reductions) <= 2


@pytest.mark.floors
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_step_on_many_devices_is_compiled_once(axis_type, caplog):
    """`init` puts the state where the step will."""
    mesh = mesh_of(2, 2, axis_type)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    rws = rws_jax.make_step(models.binary_model, models.binary_guide)
    state = rws.init(jax.random.key(0), x)
    with jax.log_compiles():
        for _ in range(3):
            state, _ = rws.step(state, x)
    assert sum("XLA compilation of jit(step)" in message for message in caplog.messages) == 1


# errors


def make(num_particles=8, mesh_shape=(2, 4), **options):
    sharding = NamedSharding(mesh_of(*mesh_shape), P("particles"))
    options = {"num_particles": num_particles, "particle_sharding": sharding, **options}
    return rws_jax.make_step(models.binary_model, models.binary_guide, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"num_particles": 10},
            ("'num_particles' does not divide", "multiple of 4", "'particles'", "num_particles=12"),
        ),
        ({"num_sleep_particles": 3}, ("'num_sleep_particles' does not divide", "num_sleep_particles=4")),
        ({"chunk_size": 2}, ("'chunk_size' does not divide", "chunk_size=4")),
        ({"vectorize_particles": False}, ("'particle_sharding' and 'vectorize_particles'",)),
    ],
)
def test_particles_that_do_not_divide_over_devices_are_refused(options, words):
    with pytest.raises(ValueError, match="option") as error:
        make(**options)
    check(error, ValueError, *words)


def test_losses_refuse_them_too():
    sharding = NamedSharding(mesh_of(1, 4), P("particles"))
    losses = rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss
    for loss in losses:
        with pytest.raises(ValueError, match="does not divide over") as error:
            loss(
                {},
                {},
                *seeded(models.binary_model, models.binary_guide),
                X,
                num_particles=6,
                particle_sharding=sharding,
            )
        check(error, ValueError, "multiple of 4", "num_particles=8")


@pytest.mark.floors
@pytest.mark.parametrize("value", ["particles", P("particles"), 8, "two axes", "none", "any", "abstract"])
def test_other_shardings_are_refused(value):
    mesh = mesh_of(2, 4)
    shardings = {
        "two axes": NamedSharding(mesh, P("data", "particles")),
        "none": NamedSharding(mesh, P()),
        "any": NamedSharding(mesh, P(P.UNCONSTRAINED)),
        "abstract": NamedSharding(mesh.abstract_mesh, P("particles")),
    }
    value = shardings.get(value, value)
    with pytest.raises(TypeError) as error:
        make(particle_sharding=value)
    check(error, TypeError, "'particle_sharding'", "NamedSharding(mesh, PartitionSpec('particles'))")


def test_jax_itself_refuses_unknown_axes_and_data_that_do_not_divide():
    """Before anything of this package is called."""
    with pytest.raises(ValueError, match=r"rows.* is not found in mesh"):
        NamedSharding(mesh_of(2, 4), P("rows"))
    with pytest.raises(ValueError, match="divi"):
        jax.device_put(X[:10], NamedSharding(mesh_of(8, 1), P("data")))


def test_arguments_on_other_devices_are_refused():
    x = jax.device_put(X, NamedSharding(Mesh(np.array(jax.devices()[4:]), ("data",)), P("data")))
    with pytest.raises(ValueError, match="different devices") as error:
        make(mesh_shape=(1, 4)).init(jax.random.key(0), x)
    check(error, ValueError, "one mesh")
