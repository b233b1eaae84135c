"""What a circuit does in time and how it answers small inputs: simulation, spectra, covariances."""
