"""What the package uses of NumPyro and NumPyro does not document: if one of these fails, NumPyro has changed it."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan
from numpyro.handlers import condition, seed, trace

from rws_jax.core import numpyro_internals as internals


class Recorded(internals.Messenger):
    """Collects messages, as handlers of the package meet them."""

    def __init__(self, fn):
        self.messages = []
        super().__init__(fn)

    def process_message(self, msg):
        self.messages.append(dict(msg))


def messages_of(program, *kinds):
    recorded = Recorded(seed(condition(program, data={"y": jnp.zeros(3)}), 0))
    trace(recorded).get_trace()
    return [msg for msg in recorded.messages if msg["type"] in kinds]


def scanned():
    def body(carry, x):
        numpyro.sample("y", dist.Normal(carry, 1.0))
        return carry, None

    scan(body, 0.0, jnp.arange(3.0))


def branched():
    draw = lambda loc: lambda _: numpyro.sample("y", dist.Normal(loc, 1.0))
    cond(jnp.array(True), draw(0.0), draw(1.0), None)


@pytest.mark.usefixtures("allow_key_reuse")
def test_scan_and_cond_send_a_message_with_the_handlers_of_their_bodies():
    for program, is_cond, num_args in ((scanned, False, 5), (branched, True, 4)):
        (message,) = messages_of(program, "control_flow")
        assert internals.is_cond(message) == is_cond
        assert len(message["args"]) == num_args
        assert [kind for kind, _ in message["kwargs"][internals.SUBSTITUTE_STACK]] == ["condition"]


class Finished(Recorded):
    """The same, once messages have their values."""

    def process_message(self, msg):
        pass

    def postprocess_message(self, msg):
        self.messages.append(dict(msg))


def test_a_scan_that_has_run_gives_its_last_carry_and_the_sites_of_its_body():
    finished = Finished(
        seed(lambda: scan(lambda z, _: (numpyro.sample("y", dist.Normal(z, 1.0)), None), 0, None, 3), 0)
    )
    finished()
    (message,) = (msg for msg in finished.messages if msg["type"] == "control_flow")
    carry, sites = internals.scanned(message)
    assert carry == sites["y"]["value"][-1]
    assert list(sites) == ["y"]
    assert sites["y"]["value"].shape == (3,)


@pytest.mark.usefixtures("allow_key_reuse")
def test_sites_of_bodies_are_sent_once_more_and_say_so():
    (site,) = messages_of(scanned, "sample")
    assert internals.comes_out_of_control_flow(site)
    plain = lambda: numpyro.sample("y", dist.Normal(0.0, 1.0).expand((3,)))
    (site,) = messages_of(plain, "sample")
    assert not internals.comes_out_of_control_flow(site)


def test_values_of_conditions_are_looked_up_by_step_and_by_site():
    site = {"name": "y", "type": "sample", "fn": dist.Normal(0.0, 1.0), "kwargs": {"sample_shape": (), "rng_key": None}}
    assert internals.value_in_scan({"y": jnp.arange(3.0)}, 2, 3, site) == 2.0
    assert internals.value_in_cond({"y": jnp.array(5.0)}, site) == 5.0


def test_a_masked_distribution_has_its_mask():
    mask = jnp.array([True, False])
    assert jnp.all(internals.mask_of(dist.Normal(jnp.zeros(2), 1.0).mask(mask)) == mask)


def test_a_handler_that_raises_leaves_no_trace_of_itself():
    """Particles are left by exceptions that no program is to catch."""

    class Leaves(internals.Messenger):
        def process_message(self, msg):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), Leaves():
            numpyro.sample("z", dist.Normal(0.0, 1.0), rng_key=jax.random.key(0))
    assert numpyro.sample("z", dist.Delta(1.0), rng_key=jax.random.key(0)) == 1.0
