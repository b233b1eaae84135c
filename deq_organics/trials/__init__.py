"""Circuits with noise in time: many trials of them, and what can be estimated from these."""
