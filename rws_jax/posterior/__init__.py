"""After training: posterior samples with their weights, and how far to trust them."""
