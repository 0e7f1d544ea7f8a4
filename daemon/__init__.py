"""The supervisor: HTTP in, workers out."""
