"""How results are shown: style, curves, claims, saved artifacts and the report."""
