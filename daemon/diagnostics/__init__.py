"""Looks at running processes: stuck workers, stacks, profiles."""
