"""Conjecture 5.3 put to the test: random circuits, verdicts on them, counterexamples."""
