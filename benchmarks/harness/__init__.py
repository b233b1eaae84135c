"""What the benchmarks have in common: clocks, races, accuracies, circuits and reports."""
