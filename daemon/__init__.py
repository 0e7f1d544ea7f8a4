"""The supervisor: it takes HTTP requests and dispatches them to worker processes."""
