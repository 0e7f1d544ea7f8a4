"""What was counted and measured, and the views and metrics that are made of it."""
