"""`compile_guide`: an amortised guide, made from the model."""

from collections.abc import Callable

from rws_jax.checks.arguments import check_program
from rws_jax.core.layers import ProgramFn
from rws_jax.guides.compiled import CompiledGuide
from rws_jax.guides.options import GuideOptions


def compile_guide(
    model: ProgramFn,
    *,
    embed: Callable | None = None,
    networks: dict[str, Callable] | None = None,
    hidden: int = 64,
    components: int = 4,
    autoregressive: bool = True,
    data_plates: dict[str, tuple[str, ...]] | None = None,
    observed_sites: tuple[str, ...] = (),
    prefix: str = "guide",
) -> CompiledGuide:
    r"""An amortised guide, made from the model: inference compilation (Le et al. 2017).

    The guide is the model itself, run with its observed sites hidden and its parameters held. Each latent is drawn from
    a proposal in place of its prior,

    .. math:: q(z \mid x) = \prod_s q_s(z_s \mid z_{<s}, x)

    of the same shape and support, whose parameters a small network computes from an embedding of the data, from the
    latents drawn before and from the prior there. Plates, branches, loops and names are the model's own. Before
    training the guide is the prior, but for a little noise, so that weights are finite from the start.

    Proposals are, by support: for few values, the prior's log-probabilities plus numbers; for real numbers, and what
    NumPyro maps to them, a mixture of Gaussians in the prior's location and scale, and of the prior; for counts, a
    mixture of rounded logistics and of the prior; for angles, of von Mises distributions and of the prior.

    It reads the arrays among its arguments. Elements of a plate that has an axis in one of them share a network, and
    each reads its own data, so the plate may change in size; plates without one have outputs for each element. What
    lies along plates that a site is not in is averaged. In `scan` a recurrent network carries what has been drawn, and
    another runs backwards over the data.

    Its weights are one tree, the value of ``numpyro.param("guide")``, by site. Shapes and scales are found at `init`,
    from 200 dreams of the model. A site that none of these has met, and one that has no proposals, is drawn from its
    prior; weights stay right, and a warning says so. The guide reads parameters of the model, and does not train them.

    Gradient: that of any guide. Bias: that of the loss; weights are those of the density that it draws from.

    Args:
      model: a NumPyro model, not seeded.
      embed: what to read in place of the arguments themselves: a function, or a module of flax.linen, flax.nnx or
        equinox, called with the arguments of one datum; returns a vector.
      networks: by latent site, such a function or module that maps `hidden` numbers to the parameters of its
        proposal, in place of the last two layers.
      hidden: units of each layer.
      components: components of mixtures, beside the prior.
      autoregressive: whether proposals read what has been drawn before them. Without, sites are independent given the
        data, but for what the prior says.
      data_plates: by argument, the plates that its first axes belong to, where their sizes do not tell; () for none. A
        leaf of a dict is ``"batch['x']"``.
      observed_sites: sites that are data, of a model that draws its data itself; their values are then read from the
        argument ``observations``, a dict, as in `sleep_phi_loss`.
      prefix: name of the param site, and what names of param sites of modules begin with.

    Returns:
      A NumPyro guide of the model's signature, for `make_step`, the losses, `importance_sample`, and NumPyro's own
      `SVI` and `Predictive`.

    Raises:
      TypeError: if an option has the wrong type or, when called, if arguments hold nothing that can be read.
      ValueError: when called, if a latent has an improper or a Delta prior, if the model has mutable state, if `embed`
        or a network returns another shape than it has to, or if sizes have changed that cannot.

    Example:
      >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax, rws_jax
      >>> def model(x):
      ...     with numpyro.plate("data", len(x)):
      ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
      ...         numpyro.sample("x", dist.Normal(z**2, 0.3), obs=x)
      >>> guide = rws_jax.compile_guide(model, hidden=16)
      >>> rws = rws_jax.make_step(
      ...     model, guide, insomnia=0.0, num_sleep_particles=20, phi_optimizer=optax.adam(0.01), model_has_params=False
      ... )
      >>> x = jnp.array([0.1, 1.0, 2.0, 4.0])
      >>> state, _ = rws_jax.fit(rws.step, rws.init(jax.random.key(0), x), 500, x, progress_bar=False)
      >>> params = rws.get_params(state, x)
      >>> weighted = rws_jax.importance_sample(jax.random.key(1), params, model, guide, x, num_particles=1000)
      >>> bool(jnp.all(weighted.effective_sample_size() > 500))
      True

    References:
      T. A. Le, A. G. Baydin, F. Wood: Inference Compilation and Universal Probabilistic Programming. AISTATS 2017.
    """
    check_program(model, "model")
    options = GuideOptions(
        embed=embed,
        networks=dict(networks or {}),
        hidden=hidden,
        components=components,
        autoregressive=autoregressive,
        data_plates=dict(data_plates or {}),
        observed_sites=observed_sites,
        prefix=prefix,
    )
    return CompiledGuide(model, options)
