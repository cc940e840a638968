"""The programs of `speed.py`, one file for each, written for NumPyro, by hand in plain JAX, and for Pyro.

Every file has

    NUM_PARTICLES, LEARNING_RATE
    data(size)                     a batch, the one argument of the programs
    model(x), guide(x)             for rws_jax, NumPyro's SVI and coix; `without_scan` for the latter two, if needed
    of_one                         where data are taken in chunks: model and guide for one datum
    log_densities(theta, phi, rng_key, x, num_particles)
                                   by hand: log p(z, x) and log q(z | x) of particles drawn from the guide, shape
                                   (particles, data), given the parameters of model and guide
    in_pyro(theta, phi)            model and guide for Pyro, with the same parameters
"""
