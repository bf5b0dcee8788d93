"""Studies, sweeps and the store that keeps finished runs."""
