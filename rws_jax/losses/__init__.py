r"""The three losses of Reweighted Wake-Sleep, as pure functions of parameters and seeded NumPyro programs.

For one unit (see `rws_jax.programs.density.Units`) and K particles :math:`z_k \sim q_\phi(z \mid x)`,

.. math:: \log w_k = \log p_\theta(z_k, x) - \log q_\phi(z_k \mid x), \qquad \bar w_k = w_k / \textstyle\sum_j w_j .

Losses are in nats and summed over units; under subsampling the sum estimates that over the full data.
"""

from rws_jax.losses.sleep import sleep_phi_loss as sleep_phi_loss
from rws_jax.losses.wake import wake_phi_loss as wake_phi_loss
from rws_jax.losses.wake import wake_theta_loss as wake_theta_loss
