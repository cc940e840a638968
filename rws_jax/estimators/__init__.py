"""What is estimated, one estimator a file: what one particle computes, and losses of all particles.

Nothing here knows how particles run. An estimator hands what one particle computes to an executor, once, and gets the
same of all particles back, as arrays of shape ``(particles, *units)``.
"""
