"""The interactive explorer of aggregation rules: its scene and its widget."""
