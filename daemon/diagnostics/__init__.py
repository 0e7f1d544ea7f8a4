"""Diagnosis of running processes: stuck workers, stacks, profiles."""
