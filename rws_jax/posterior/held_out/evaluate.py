"""`evaluate`: held-out evidence of each datum, over more data than memory holds."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm.auto import tqdm

from rws_jax.arguments import trained_programs_of
from rws_jax.checks.arguments import check_flag, check_rng_key
from rws_jax.core.errors import fail
from rws_jax.core.layers import Params, ProgramFn
from rws_jax.core.trees import is_traced
from rws_jax.options import SamplingOptions
from rws_jax.options.taking import takes
from rws_jax.posterior.evidence_particle import EvidenceParticle
from rws_jax.posterior.held_out import evidence
from rws_jax.posterior.held_out.evaluation import Evaluation
from rws_jax.posterior.held_out.evidence import EvidenceSummary
from rws_jax.posterior.running import run
from rws_jax.training.batches import arguments_of, check_batches, check_ends

_HINT = "pass [(x,)] for a single batch, or a generator of tuples: ((x[i : i + 100],) for i in range(0, len(x), 100))"


@takes(SamplingOptions)
def evaluate(
    options: SamplingOptions,
    rng_key: jax.Array,
    params: Params,
    model: ProgramFn,
    guide: ProgramFn,
    batches: Iterable,
    /,
    *args: Any,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Evaluation:
    r"""Estimate the log evidence of held-out data, unit by unit, from batches that need not fit into memory together.

    .. math:: \log p_\theta(x) \ge E\Big[\log \frac1K \sum_k w_k\Big], \qquad
        w_k = \frac{p_\theta(z_k, x)}{q_\phi(z_k \mid x)}

    (Burda et al. 2016). A unit is an element of the plates that model and guide have in common, usually one datum; with
    no such plate each batch is one unit, and the result says so. Evidence is that of a unit itself: the scale of a
    subsampled plate is left out. Bias: in expectation the estimate is :math:`O(1/K)` below log evidence; the bounds for
    smaller K, from the same particles, show how much is still to come.

    Particles of different batches are independent. Memory is that of the programs on one batch, ``chunk_size``
    particles at a time, and of a few numbers for each of its particles and units. Each shape of batches is compiled
    once: a smaller last batch compiles once more. Ctrl-C returns what has been evaluated.

    Args:
      rng_key: JAX random key; batch number b uses ``jax.random.fold_in(rng_key, b)``.
      params: constrained values of both programs, as ``rws.get_params`` gives them.
      model: NumPyro model, not seeded.
      guide: NumPyro guide, not seeded.
      batches: iterable of what differs from batch to batch, as `fit` takes it; its items come before `args`. A plain
        tuple or list has several arguments; an array, a dict or a NamedTuple is one. ``[(x,)]`` is a single batch.
        `minibatches` with ``epochs=1`` leaves out rows that do not fill a batch.
      *args: arguments of both programs, the same for every batch.
      progress_bar: whether to show one.
      options: how particles are drawn and run.
      **kwargs: keyword arguments of both programs.

    Returns:
      An `Evaluation`: log evidence of each unit of all batches in nats, its mean and total with standard errors over
      data and over particles, the bound for K = 1, 10, 100, ..., and effective sample sizes.

    Raises:
      ValueError: if there is no batch, if batches have no end, if programs or parameters do not match, or an option is
        out of range.
      TypeError: for an argument of the wrong kind, data in place of an iterable of batches among them.

    Example:
      >>> import jax, numpy as np, numpyro, numpyro.distributions as dist, rws_jax
      >>> def model(x):
      ...     with numpyro.plate("data", len(x)):
      ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
      >>> def guide(x):
      ...     with numpyro.plate("data", len(x)):
      ...         numpyro.sample("z", dist.Normal(x / 2, 0.8))
      >>> x = np.linspace(-2.0, 2.0, 60, dtype=np.float32)
      >>> batches = ((x[i : i + 20],) for i in range(0, 60, 20))
      >>> rws_jax.evaluate(jax.random.key(0), {}, model, guide, batches, progress_bar=False).log_evidence.shape
      (60,)

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016, arXiv 1509.00519.
    """
    check_rng_key(rng_key, "the first argument of evaluate", "pass jax.random.key(0), say")
    check_batches(batches, optional=False, hint=_HINT)
    check_ends(batches, "evaluate")
    check_flag(progress_bar, "progress_bar")
    if is_traced((rng_key, params, args, kwargs)):
        what, hint = "evaluate is called inside of jit, scan or vmap", "minus rws_jax.wake_theta_loss is a bound there"
        fail(TypeError, what, expected="a call from Python", found="a traced argument", hint=hint)
    particle = EvidenceParticle(options.wake.estimator.particle)
    # Particles that were resampled do not come in independent groups.
    sizes = evidence.sizes_up_to(options.num) if options.resample is None else (options.num,)

    def summary_of(number: int, batch: Any) -> EvidenceSummary:
        own_key, own_args = jax.random.fold_in(rng_key, number), (*arguments_of(batch), *args)
        programs = trained_programs_of(evaluate, options, own_key, params, model, guide, own_args, kwargs)
        summary = evidence.summarise(run(particle, programs, options.num, options.execution), sizes)
        return summary if options.resample is None else summary.without_errors

    summaries = (summary_of(number, batch) for number, batch in enumerate(batches))
    return _collected(summaries, sizes, getattr(batches, "__len__", lambda: None)(), progress_bar)


def _collected(
    summaries: Iterator[EvidenceSummary], sizes: tuple[int, ...], num_batches: int | None, progress_bar: bool
) -> Evaluation:
    """All of them on the host, each fetched while the next batch is computed."""
    done: list[EvidenceSummary] = []
    num, total, total_ess = 0, 0.0, 0.0  # of what the bar shows
    with tqdm(total=num_batches, disable=not progress_bar, bar_format=_bar_format(num_batches, 0)) as bar:
        try:
            bar.set_postfix_str("compiling")
            for summary in _one_behind(summaries):
                done.append(jax.device_get(summary))
                log_evidence, ess = done[-1].bounds[-1], done[-1].effective_sample_size
                num, total, total_ess = num + log_evidence.size, total + log_evidence.sum(), total_ess + ess.sum()
                bar.bar_format = _bar_format(num_batches, len(done))
                means = f"log evidence={total / num:.4g}, ESS={total_ess / num:.4g} of {sizes[-1]}"
                bar.set_postfix_str(means, refresh=False)
                bar.update()
        except KeyboardInterrupt:
            bar.set_description("interrupted")
            if not done:
                raise
    if not done:
        fail(
            ValueError,
            "argument 'batches' has no batch",
            expected="at least one",
            found="an iterable that ends at once",
            hint="an iterator can be used once only; make a new one for each call",
        )
    return Evaluation.of(sizes, done)


def _bar_format(num_batches: int | None, num_done: int) -> str:
    """What the bar shows: counts and times, and the time that is left once one of several batches is done."""
    noun = "batch" if (num_done if num_batches is None else num_batches) == 1 else "batches"
    if num_batches is None:
        return f"{{desc}}{{n_fmt}} {noun} [{{elapsed}}{{postfix}}]"
    remaining = "<{remaining}" if 0 < num_done < num_batches else ""
    return f"{{desc}}{{bar}}| {{n_fmt}}/{{total_fmt}} {noun} [{{elapsed}}{remaining}{{postfix}}]"


def _one_behind(summaries: Iterator[EvidenceSummary]) -> Iterator[EvidenceSummary]:
    """The same, each handed on once the device has the next one to compute."""
    last = None
    for summary in summaries:
        if last is not None:
            yield last
        last = summary
    if last is not None:
        yield last
