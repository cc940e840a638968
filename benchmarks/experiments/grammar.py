"""A grammar whose probabilities are learned from sentences (Le et al. 2019, arXiv 1805.10469), cut at a depth.

S is NP VP; NP is NP PP or a noun; VP is VP PP or "saw" NP; PP is "with" NP. Trees are latent, and the log density of a
sentence is minus ten times the squared edit distance to a tree's leaves. Le et al. have minus the square: a wrong word
then costs one nat, trees with wrong words share the evidence, and the true probabilities are not where it is greatest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from programs.grammar import NOUNS, SAW, WITH, WORDS, edit_distance

import rws_jax

TRUTH = {"np": jnp.array([0.4, 0.1, 0.18, 0.04, 0.18, 0.1]), "vp": jnp.array([0.3, 0.7])}
MAX_DEPTH, LENGTH = 2, 16  # 30 trees, whose longest sentence has 15 words
BRANCHES = {"branching": True}
METHODS = {"wake": 1.0, "wake and sleep": 0.5, "sleep": 0.0}  # and their insomnia

SETTINGS = [
    {"method": method, "num_particles": 5, "num_seeds": 3, "num_steps": 1000, "learning_rate": 0.02, "batch": 10}
    for method in METHODS
]


def grow(choose):
    """Words of a tree, 0 for a noun, and which nouns there are; ``choose(kind, at, depth, owed)`` splits a node."""
    words = []

    def noun_phrase(depth, owed):
        if depth < MAX_DEPTH and choose("np", len(words), depth, owed):
            noun_phrase(depth + 1, owed + 1)
            words.append(WITH)
            noun_phrase(depth + 1, owed)
        else:
            words.append(0)

    def verb_phrase(depth, owed):
        if depth < MAX_DEPTH and choose("vp", len(words), depth, owed):
            verb_phrase(depth + 1, owed + 1)
            words.append(WITH)
        else:
            words.append(SAW)
        noun_phrase(depth + 1, owed)

    noun_phrase(0, 0)
    verb_phrase(0, 0)
    present = np.arange(LENGTH // 2) < (len(words) + 1) // 2
    return np.array(words + [0] * (LENGTH - len(words))), present


def draw_data(rng):
    """A sentence of the true grammar."""
    words, present = grow(lambda kind, *place: rng.random() < TRUTH[kind][0])
    p = np.array(TRUTH["np"][1:], float)
    words[::2] = np.where(present, 1 + rng.choice(len(NOUNS), LENGTH // 2, p=p / p.sum()), 0)
    return words


class NearTo(dist.Distribution):
    """Sentences near to some words, which are what it draws."""

    support = dist.constraints.independent(dist.constraints.integer_interval(0, len(WORDS) - 1), 1)
    pytree_data_fields = ("words",)

    def __init__(self, words, validate_args=None):
        self.words = words
        super().__init__((), (LENGTH,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        """The words."""
        return jnp.broadcast_to(self.words, (*sample_shape, LENGTH))

    def log_prob(self, value):
        """Of a sentence."""
        return -10.0 * edit_distance(self.words, value).astype(float) ** 2


def at_sites(logits):
    """Nodes that are split by sample sites."""
    number = iter(range(100))
    return lambda kind, *place: numpyro.sample(
        f"{kind}_{next(number)}", dist.Bernoulli(logits=logits(kind, *place)), infer=BRANCHES
    )


def model(x):
    """A tree, its nouns, and a sentence."""
    logits = {kind: numpyro.param(kind, jnp.zeros(())) for kind in ("np", "vp")}
    words, present = grow(at_sites(lambda kind, *place: logits[kind]))
    noun = dist.Categorical(logits=numpyro.param("nouns", jnp.zeros(len(NOUNS))))
    nouns = numpyro.sample("nouns_drawn", noun.expand([LENGTH // 2]).mask(present).to_event(1))
    numpyro.sample("x", NearTo(jnp.array(words).at[::2].set(jnp.where(present, 1 + nouns, 0))), obs=x)


@jax.jit
def node(hidden, out, x, at, depth, owed):
    """The logit of a split, by the next words, the PPs that follow at once, and those that are owed."""
    rest = jax.lax.dynamic_slice(jnp.pad(x, (0, LENGTH)), (at,), (LENGTH,))
    num_pps = jnp.cumprod(rest[1::2] == WITH).sum()
    one_hot = lambda value: jax.nn.one_hot(jnp.clip(value, 0, 6), 7)
    seen = jnp.concatenate([one_hot(v) for v in (rest[0], rest[1], num_pps - owed + 1, owed, depth)])
    return jnp.tanh(seen @ hidden) @ out


def guide(x):
    """The same choices, from left to right, by what the sentence has there."""
    normal = lambda *shape: lambda rng_key: jax.random.normal(rng_key, shape) / shape[0] ** 0.5
    hidden = numpyro.param("hidden", normal(35, 32))
    outs = {kind: numpyro.param(f"{kind}_out", jnp.zeros(32)) for kind in ("np", "vp")}
    per_word = numpyro.param("per_word", jnp.zeros((len(WORDS), len(NOUNS))))
    _, present = grow(at_sites(lambda kind, at, *rest: node(hidden, outs[kind], x, at + (kind == "vp"), *rest)))
    numpyro.sample("nouns_drawn", dist.Categorical(logits=per_word[x[::2]]).mask(present).to_event(1))


def kl(theta):
    """From the true probabilities of productions to the learned ones, summed over NP and VP, in nats."""
    split = {kind: jax.nn.sigmoid(theta[kind]) for kind in ("np", "vp")}
    nouns = (1.0 - split["np"]) * jax.nn.softmax(theta["nouns"])
    learned = {"np": jnp.append(split["np"], nouns), "vp": jnp.array([split["vp"], 1.0 - split["vp"]])}
    return sum(jnp.sum(p * jnp.log(p / learned[kind])) for kind, p in TRUTH.items())


def run(method, num_particles, num_seeds, num_steps, learning_rate, batch):
    """KL and effective sample size, means over the last tenth of the steps."""
    rng, num_last = np.random.default_rng(0), num_steps // 10
    data = jnp.array([draw_data(rng) for _ in range(5000)])
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps, 0.1))
    rws = rws_jax.make_step(
        model,
        guide,
        theta_optimizer=adam,
        phi_optimizer=adam,
        num_particles=num_particles,
        insomnia=METHODS[method],
        data_axes=0,
    )

    def body(state, rng_key):
        state, info = rws.step(state, jax.random.choice(rng_key, data, (batch,)))
        return state, (kl(state.theta), info.ess_mean)

    steps = jax.jit(lambda state, keys: jax.lax.scan(body, state, keys)[1])
    found = {"kl": [], "ess": [], "start": []}
    for seed in range(num_seeds):
        init_key, data_key = jax.random.split(jax.random.key(seed))
        start = rws.init(init_key, data[:batch])
        kls, ess = steps(start, jax.random.split(data_key, num_steps))
        found["start"].append(float(kl(start.theta)))
        found["kl"].append(float(kls[-num_last:].mean()))
        found["ess"].append(float(ess[-num_last:].mean()))
    return found


def tables(runs):
    """By method and number of particles."""
    rows = ["| K | method | KL at the start | KL at the end | ESS at the end |", "|---|---|---|---|---|"]
    for run in runs:
        start, end, ess = (np.median(run[name]) for name in ("start", "kl", "ess"))
        spread = f"{min(run['kl']):.4f} to {max(run['kl']):.4f}"
        rows.append(f"| {run['num_particles']} | {run['method']} | {start:.3f} | {end:.4f} ({spread}) | {ess:.2f} |")
    return "\n".join(rows)
