"""Where the workers of a pool run: one room for each kind of place."""
