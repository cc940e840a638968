"""Functions of single sites, compiled where particles run un-jitted."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from rws_jax.core.site_functions import at_site, compiled_sites

pytestmark = pytest.mark.usefixtures("allow_key_reuse")


def counted(function):
    """A function, how often Python has run it, and with what."""
    runs = []

    def run(*args):
        runs.append(args)
        return function(*args)

    return at_site(run), runs


def test_distributions_of_one_kind_are_compiled_once():
    log_prob, runs = counted(lambda fn, value: fn.log_prob(value))
    with compiled_sites():
        found = [log_prob(dist.Normal(loc, 2.0), 0.5) for loc in jnp.arange(4.0)]
    np.testing.assert_allclose(found, [dist.Normal(loc, 2.0).log_prob(0.5) for loc in range(4)], rtol=1e-6)
    assert len(runs) == 2  # the first as it is; the second compiles


def test_nothing_is_compiled_elsewhere():
    log_prob, runs = counted(lambda fn, value: fn.log_prob(value))
    for _ in range(3):
        log_prob(dist.Normal(0.0, 2.0), 0.5)
    assert len(runs) == 3


def test_what_python_computes_with_is_called_as_it_is():
    function, runs = counted(lambda x: x + 1.0 if x > 0.0 else x)
    with compiled_sites():
        assert [function(jnp.array(value)).item() for value in (1.0, 2.0, 3.0, -1.0)] == [2.0, 3.0, 4.0, -1.0]
    assert len(runs) == 5  # one of them in vain
    assert not isinstance(runs[-1][0], jax.core.Tracer)


def test_values_are_not_validated_within():
    with compiled_sites():
        dist.Normal(0.0, -1.0)
    with pytest.raises(ValueError, match="invalid scale"):
        dist.Normal(0.0, -1.0)


class Tempered(dist.Normal):
    """A user's, whose tree lacks the power; there is another one at the class."""

    power = 1.0

    def __init__(self, loc, power):
        super().__init__(loc, 1.0)
        self.power = power

    def log_prob(self, value):
        return self.power * super().log_prob(value)


def twice(base):
    """A transform of a user's that is no tree; older releases of NumPyro let nobody define one."""

    class Twice(dist.transforms.Transform):
        domain = codomain = dist.constraints.real

        def __call__(self, x):
            return 2.0 * x

        def _inverse(self, y):
            return y / 2.0

        def log_abs_det_jacobian(self, x, y, intermediates=None):
            return jnp.full(jnp.shape(x), jnp.log(2.0))

    return dist.TransformedDistribution(base, Twice())


OF_USERS = {
    "attribute": lambda: Tempered(0.3, 3.0),
    "attribute within": lambda: Tempered(jnp.array(0.3), 3.0).expand([2]).to_event(1),
    "transform": lambda: twice(dist.Normal(0.3, 1.0)),
}


@pytest.mark.parametrize("kind", OF_USERS)
def test_classes_of_users_are_called_as_they_are(kind):
    """What their trees lack would be lost."""
    fn, log_prob = OF_USERS[kind](), at_site(lambda fn, value: fn.log_prob(value))
    value = jnp.full(fn.event_shape, 0.7)
    with compiled_sites():
        for _ in range(3):
            np.testing.assert_allclose(log_prob(fn, value), fn.log_prob(value), rtol=1e-6)
