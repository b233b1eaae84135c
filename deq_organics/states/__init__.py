"""States as values: where a trajectory ends, all fixed points, their branches and bifurcations."""
