"""A probabilistic context-free grammar: sentences of astronomers, stars and telescopes, whose trees are latent.

S is NP VP; NP is NP PP or a noun; VP is V NP or VP PP; PP is "with" NP; V is "saw". A tree explains a sentence the
better the smaller the edit distance is between the sentence and its leaves: its log density is minus the square of it.
Probabilities of productions are learned. The guide reads the sentence by a recurrent network, and draws the tree from
the top down, each node by a network of its state.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax

NUM_DATA = 2
BRANCHES = {"branching": True}
NOUNS = ["astronomers", "ears", "saw", "stars", "telescopes"]
WORDS = ["", *NOUNS, "with"]  # 0 is the end of a sentence
SAW, WITH = WORDS.index("saw"), WORDS.index("with")
NP = [0.4, 0.1, 0.18, 0.04, 0.18, 0.1]  # NP PP, or one of the nouns
VP = [0.7, 0.3]  # V NP, or VP PP
MAX_DEPTH, LENGTH, SIZE = 30, 40, 32


def grown(choose, kind, state, depth=0):
    """The words below a node; ``choose(kind, state, depth)`` is its production, and the states of its two children."""
    production, left, right = choose(kind, state, depth)
    if kind == "np" and production:
        return [production]  # a noun
    if kind == "vp" and not production:
        return [SAW, *grown(choose, "np", right, depth + 1)]
    words = grown(choose, kind, left, depth + 1)
    return [*words, WITH, *grown(choose, "np", right, depth + 1)]


def sentence_of(choose, left, right):
    """S is NP VP."""
    return grown(choose, "np", left) + grown(choose, "vp", right)


def is_last(depth):
    """Whether a node has to be a leaf, or to have leaves below it."""
    return depth >= MAX_DEPTH


def draw_data(rng_key):
    """Sentences of the true grammar that fit in."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))

    def choose(kind, state, depth):
        p = np.array({"np": NP, "vp": VP}[kind])
        return int(rng.choice(len(p), p=p / p.sum())), None, None

    sentences = []
    while len(sentences) < NUM_DATA:
        words = sentence_of(choose, None, None)
        if len(words) <= LENGTH // 2:
            sentences.append(padded(words))
    return jnp.array(sentences)


def padded(words):
    """Words of a sentence and zeros; a sentence that is too long is cut."""
    return (words + [0] * LENGTH)[:LENGTH]


@jax.jit
def edit_distance(words, x):
    """Levenshtein's distance of two sentences, a row of the table at a time."""
    columns = jnp.arange(len(x) + 1)

    def next_row(row, word):
        change = jnp.minimum(row[1:] + 1, row[:-1] + (x != word))
        new = jnp.concatenate([row[:1] + 1, change])
        new = lax.cummin(new - columns) + columns  # insertions
        return jnp.where(word == 0, row, new), None

    row, _ = lax.scan(next_row, columns, words)
    return row[jnp.sum(x != 0)]


def model(x):
    """The tree, and how well it explains a sentence."""
    logits = {"np": numpyro.param("np", jnp.zeros(len(NP))), "vp": numpyro.param("vp", jnp.zeros(len(VP)))}
    words = sentence_of(at_sites(lambda kind, state, production: (logits[kind], None, None)), None, None)
    numpyro.factor("x", -(edit_distance(jnp.array(padded(words)), x).astype(float) ** 2))


def guide(x):
    """The tree, given a sentence."""
    weights = {name: numpyro.param(name, value) for name, value in initial_weights().items()}
    context = read(weights, x)
    choose = at_sites(lambda kind, state, production: node(weights, kind == "np", context, state, production))
    start = jnp.zeros(SIZE)
    sentence_of(choose, start, start)


def at_sites(network):
    """Productions by sample sites; ``network(kind, state, production)`` has their logits and the children's states."""
    number = 0

    def choose(kind, state, depth):
        nonlocal number
        name, number = f"{kind}_{number}", number + 1
        logits, *_ = network(kind, state, 0)
        if is_last(depth):
            logits = logits + LAST[kind]
        production = int(numpyro.sample(name, dist.Categorical(logits=logits), infer=BRANCHES))
        return production, *network(kind, state, production)[1:]

    return choose


LAST = {"np": jnp.array([-1e9] + [0.0] * len(NOUNS)), "vp": jnp.array([0.0, -1e9])}


@cache
def initial_weights():
    """Those of both networks of the guide."""
    rng = np.random.default_rng(0)
    matrix = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), float)
    return {
        "embedding": matrix(len(WORDS), SIZE),
        "gates": matrix(2 * SIZE, 2 * SIZE),
        "candidate": matrix(2 * SIZE, SIZE),
        "hidden": matrix(2 * SIZE, SIZE),
        "np_out": 0.1 * matrix(SIZE, len(NP)),
        "vp_out": 0.1 * matrix(SIZE, len(VP)),
        "np_production": matrix(len(NP), SIZE),
        "vp_production": matrix(len(VP), SIZE),
        "left": matrix(2 * SIZE, SIZE),
        "right": matrix(2 * SIZE, SIZE),
    }


@jax.jit
def read(weights, x):
    """The last state of a recurrent network with gates (GRU)."""

    def step(state, word):
        both = jnp.concatenate([state, weights["embedding"][word]])
        update, reset = jnp.split(jax.nn.sigmoid(both @ weights["gates"]), 2)
        both = jnp.concatenate([reset * state, both[SIZE:]])
        new = update * state + (1.0 - update) * jnp.tanh(both @ weights["candidate"])
        return jnp.where(word == 0, state, new), None

    return lax.scan(step, jnp.zeros(SIZE), x)[0]


def node(weights, is_np, context, state, production):
    """Logits of a node's productions, and the states of its children by the one that is chosen."""
    kind = "np" if is_np else "vp"
    return _node(weights, weights[f"{kind}_out"], weights[f"{kind}_production"], context, state, production)


@jax.jit
def _node(weights, out, productions, context, state, production):
    hidden = jnp.tanh(jnp.concatenate([context, state]) @ weights["hidden"])
    chosen = jnp.concatenate([hidden, productions[production]])
    return hidden @ out, jnp.tanh(chosen @ weights["left"]), jnp.tanh(chosen @ weights["right"])


def pyro_programs(start):
    """The same in Pyro."""
    import pyro
    import torch
    from pyro import distributions as pyro_dist

    last = {kind: torch.tensor(np.array(value)) for kind, value in LAST.items()}

    def choices(network):
        number = 0

        def choose(kind, state, depth):
            nonlocal number
            name, number = f"{kind}_{number}", number + 1
            logits, children = network(kind, state)
            logits = logits + last[kind] if is_last(depth) else logits
            production = int(pyro.sample(name, pyro_dist.Categorical(logits=logits)))
            return production, *children(production)

        return choose

    def distance(words, x):
        row = list(range(len(x) + 1))
        for word in words:
            new = [row[0] + 1]
            for column, other in enumerate(x):
                new.append(min(row[column + 1] + 1, new[column] + 1, row[column] + (word != other)))
            row = new
        return row[-1]

    def pyro_model(x):
        logits = {kind: pyro.param(kind, start[kind]) for kind in ("np", "vp")}
        words = sentence_of(choices(lambda kind, state: (logits[kind], lambda production: (None, None))), None, None)
        observed = [word for word in x.tolist() if word]
        pyro.factor("x", torch.tensor(-(float(distance([w for w in padded(words) if w], observed)) ** 2)))

    def pyro_guide(x):
        w = {name: pyro.param(name, value) for name, value in start.items() if name not in ("np", "vp")}
        state = torch.zeros(SIZE)
        for word in x[x != 0]:
            both = torch.cat([state, w["embedding"][word]])
            update, reset = torch.sigmoid(both @ w["gates"]).split(SIZE)
            both = torch.cat([reset * state, both[SIZE:]])
            state = update * state + (1.0 - update) * torch.tanh(both @ w["candidate"])
        context = state

        def network(kind, state):
            hidden = torch.tanh(torch.cat([context, state]) @ w["hidden"])

            def children(production):
                chosen = torch.cat([hidden, w[f"{kind}_production"][production]])
                return torch.tanh(chosen @ w["left"]), torch.tanh(chosen @ w["right"])

            return hidden @ w[f"{kind}_out"], children

        sentence_of(choices(network), torch.zeros(SIZE), torch.zeros(SIZE))

    return pyro_model, pyro_guide
