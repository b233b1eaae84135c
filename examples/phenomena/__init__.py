"""The phenomena of normalization: circuits of tuned neurons, what they show, its picture."""
