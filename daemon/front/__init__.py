"""The HTTP side of the supervisor: bytes to tickets, outcomes to bytes. It decides nothing about load."""
