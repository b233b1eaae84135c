"""The dynamics of a circuit from a start: where they end, or on which cycle."""
