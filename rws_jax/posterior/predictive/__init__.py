"""New data from posterior samples, and all of it for ArviZ."""
