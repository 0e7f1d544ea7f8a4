"""The pools' workers: their seats, starts, ends and reloads."""
