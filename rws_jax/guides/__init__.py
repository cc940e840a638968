<<<<<<< HEAD
"""Guides that are made from the model."""
=======
"""Guides that are made from the model: a proposal at each latent site, computed from the data by small networks."""
>>>>>>> h1
