"""Requests on their way from the front to a worker and back."""
