"""Theorems as functions: energies, oscillators, normal modes and circuits of two neurons."""
