"""Training: one loop, its tasks, its recipes."""
