"""Metrics: arrays in, numbers with a named convention out; no model."""
