"""Weights of nested particles, arrays only: against loops over a tree of particles, and hand numbers."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rws_jax.estimators.nested_weights import nested_weights
from tests.models import rows

level = lambda parent, *summed: SimpleNamespace(parent=parent, summed=summed)

# name -> levels; the axes of plates of each level, the dims that arrays have
TREES = {
    "one plate": ([level(None), level(0, -1)], [(1,), (3,)]),
    "three levels": ([level(None), level(0, -2), level(1, -1)], [(1, 1), (2, 1), (2, 3)]),
    "two plates at once": ([level(None), level(0, -2, -1)], [(1, 1), (2, 3)]),
    "siblings": ([level(None), level(0, -1), level(0, -1)], [(1,), (3,), (2,)]),
    "siblings of other depth": (
        [level(None), level(0, -1), level(0, -2), level(2, -1)],
        [(1, 1), (1, 2), (2, 1), (2, 2)],
    ),
    "units to the left": ([level(None), level(0, -1)], [(2, 1), (2, 3)]),
    "units to the right": ([level(None), level(0, -2)], [(1, 2), (3, 2)]),
    "units between": ([level(None), level(0, -3), level(1, -1)], [(1, 2, 1), (2, 2, 1), (2, 2, 2)]),
}
K, L = 2, 3


def chain(levels, number):
    """The numbers of the levels from below the root down to this one."""
    return [] if levels[number].parent is None else [*chain(levels, levels[number].parent), number]


def random_weights(levels, plates, share_dead, num=1):
    rng = np.random.default_rng(0)
    shapes = [(num, K, *(L,) * len(chain(levels, number)), *plates[number]) for number in range(len(levels))]
    own = [rng.normal(size=shape) for shape in shapes]
    return [np.where(rng.random(o.shape) < share_dead, -np.inf, o).astype(np.float32) for o in own]


def below(levels, plates, number, element):
    """Elements of all levels below one, for an element of it: pairs of level and element."""
    for child, one in enumerate(levels):
        if one.parent == number:
            dims = [axis - len(plates[child]) for axis in range(len(plates[child]))]
            sizes = dict(zip(dims, plates[child], strict=True))
            choices = [range(size) if dim in one.summed else [element[dim]] for dim, size in sizes.items()]
            for own in itertools.product(*choices):
                yield child, own


def weight(own, levels, plates, number, at, element):
    """Of one particle with all that is below it, by recursion: exp(own) times, for each element, a mean over l."""
    total = np.exp(np.float64(own[number][(*at, *element)]))
    for child, inner in below(levels, plates, number, element):
        inner = tuple(i if size > 1 else 0 for i, size in zip(inner, plates[child], strict=True))
        total *= np.mean([weight(own, levels, plates, child, (*at, one), inner) for one in range(L)])
    return total


def normalised(own, levels, plates):
    """Weights of all particles of all levels, one by one."""
    w = [np.zeros(x.shape) for x in own]
    for number in range(len(levels)):
        for at in itertools.product(range(K), *[range(L)] * len(chain(levels, number))):
            for element in np.ndindex(*plates[number]):
                same = [(*at[:-1], other) for other in range(K if number == 0 else L)]
                around = [weight(own, levels, plates, number, a, element) for a in same]
                share = around[at[-1]] / sum(around) if sum(around) > 0 else 0.0
                parent = levels[number].parent
                if parent is not None:
                    outer = tuple(i if size > 1 else 0 for i, size in zip(element, plates[parent], strict=True))
                    share *= w[parent][(*at[:-1], *outer)]
                w[number][(*at, *element)] = share
    return w


FAST = ["siblings"]


@pytest.mark.parametrize("name", rows(TREES, fast=FAST))
def test_weights_are_those_of_a_recursion_over_all_particles(name):
    levels, plates = TREES[name]
    own = random_weights(levels, plates, 0.25, num=3)
    own = [np.where(np.arange(3).reshape(3, *[1] * (x.ndim - 1)) == 0, np.nan_to_num(x, neginf=0.3), x) for x in own]
    found = jax.jit(jax.vmap(lambda own: nested_weights(own, levels, len(plates[0]))))(own)
    for one in range(3):
        of_one = [x[one] for x in own]
        expected = normalised(of_one, levels, plates)
        for number in range(len(levels)):
            np.testing.assert_allclose(found.w[number][one], expected[number], rtol=2e-5, atol=1e-7)
            where = np.unravel_index(of_one[number].size - 1, of_one[number].shape)
            num_at = len(where) - len(plates[0])
            alone = weight(of_one, levels, plates, number, where[:num_at], where[num_at:])
            np.testing.assert_allclose(np.exp(found.log_w[number][one][where]), alone, rtol=2e-5)


@pytest.mark.parametrize("name", rows(TREES, fast=FAST))
def test_baselines_do_not_depend_on_the_particle_itself_and_are_zero_in_dead_units(name):
    """1/(K L ... L) where, with the particle dead, another one of its element still has weight; else zero."""
    levels, plates = TREES[name]
    num_dims = len(plates[0])
    of_all = jax.jit(jax.vmap(lambda own: nested_weights(own, levels, num_dims)))
    several, seen = random_weights(levels, plates, 0.4, num=4), set()
    for own in ([x[one] for x in several] for one in range(4)):
        baselines = nested_weights(own, levels, num_dims).baseline
        cases = [
            (number, where) for number, x in enumerate(own) for where in list(np.ndindex(*x.shape))[:: 1 + x.size // 20]
        ]

        def changed(value, own=own, cases=cases):
            stacks = [np.repeat(x[None], len(cases), axis=0) for x in own]
            for case, (number, where) in enumerate(cases):
                stacks[number][(case, *where)] = value
            return jax.device_get(of_all(stacks))

        without, with_it = changed(-np.inf), changed(3.0)
        for case, (number, where) in enumerate(cases):
            axis = len(where) - num_dims - 1
            line = (case, *where[:axis], slice(None), *where[axis + 1 :])
            others_weigh = bool(without.w[number][line].sum() > 0)
            expected = others_weigh / (K * L ** len(chain(levels, number)))
            assert without.baseline[number][(case, *where)] == pytest.approx(expected)
            assert with_it.baseline[number][(case, *where)] == pytest.approx(expected)
            assert baselines[number][where] == pytest.approx(expected)
            seen.add((number > 0, others_weigh))
    assert {(True, True), (True, False)} <= seen  # some have one, and some have none


def test_hand_numbers_of_two_globals_and_one_element():
    """Z of the element is (1 + 3) / 2 = 2 and (2 + 2) / 2 = 2; with 1 and 3 of the globals, weights are 1/4 and 3/4."""
    own = [np.log([[1.0], [3.0]]), np.log([[[1.0], [3.0]], [[2.0], [2.0]]])]
    log_w, w, baseline = nested_weights(own, TREES["one plate"][0], 1)
    np.testing.assert_allclose(np.exp(log_w[0]), [[2.0], [6.0]], rtol=1e-6)
    np.testing.assert_allclose(w[0], [[0.25], [0.75]], rtol=1e-6)
    np.testing.assert_allclose(w[1][..., 0], [[0.0625, 0.1875], [0.375, 0.375]], rtol=1e-6)
    np.testing.assert_allclose(baseline[0], 0.5)
    np.testing.assert_allclose(baseline[1], 0.25)


def test_two_elements_multiply():
    """Z of the elements: 2 and 5 for the first global, 3 and 0 for the second, which is dead."""
    local = [[[1.0, 4.0], [3.0, 6.0]], [[2.0, 0.0], [4.0, 0.0]]]
    with np.errstate(divide="ignore"):
        own = [np.zeros((2, 1)), np.log(local)]
    log_w, w, baseline = nested_weights(own, TREES["one plate"][0], 1)
    np.testing.assert_allclose(np.exp(log_w[0])[:, 0], [10.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(w[0][:, 0], [1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(w[1][0], [[0.25, 0.4], [0.75, 0.6]], rtol=1e-6)
    assert not np.any(w[1][1])
    # The first global is the only one alive, so it has no baseline; without it the second would be.
    assert baseline[0][:, 0].tolist() == [0.0, 0.5]
    np.testing.assert_allclose(baseline[1], [[[0.25, 0.25], [0.25, 0.25]], [[0.0, 0.0], [0.0, 0.0]]])


def test_dead_units_have_neither_weights_nor_baselines():
    own = [np.zeros((2, 1)), np.full((2, 3, 3), -np.inf)]
    log_w, w, baseline = nested_weights(own, TREES["one plate"][0], 1)
    assert all(not np.any(x) for x in (*w, *baseline))
    assert np.all(np.isneginf(log_w[0]))


def test_sums_of_a_thousand_elements_neither_overflow_nor_vanish():
    own = [np.zeros((2, 1)), np.full((2, 3, 1000), -700.0)]
    own[0][1], own[1][1] = -3.0, 500.0
    log_w, w, _ = nested_weights(own, TREES["one plate"][0], 1)
    np.testing.assert_allclose(log_w[0][:, 0], [-700_000.0, 500_000.0 - 3.0], rtol=1e-6)
    np.testing.assert_allclose(w[0][:, 0], [0.0, 1.0])
    np.testing.assert_allclose(w[1][1], 1 / 3, rtol=1e-6)


def test_numbers_that_are_wrong_are_passed_on():
    own = [np.zeros((2, 1)), np.zeros((2, 3, 3))]
    own[1][0, 0, 1] = np.nan
    log_w, w, _ = nested_weights(own, TREES["one plate"][0], 1)
    assert np.isnan(log_w[0][0, 0])
    assert np.isnan(w[0]).all()
