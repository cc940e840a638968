"""Models whose log evidence is known, each with guides of two kinds, for `guides.py`.

Each module is one problem:

    model, mean_field, by_hand   NumPyro programs of the data; the model has no parameters
    SHAPES                       argument -> array of zeros, of the shape and type of the data
    DATA_AXES                    0 if programs are of one datum; None if a plate holds all of them
    log_evidence                 log p(x) of each datum, exactly, as a function of the same arguments

`mean_field` draws each latent by itself, from a network of the data. `by_hand` is what somebody writes who knows the
posterior: exact where it is conjugate or can be enumerated, else a network of the right features and dependence.
"""

NUM_DATA = 64
