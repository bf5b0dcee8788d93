"""Measurements beside training runs: cost of rules, and training over lossy links."""
