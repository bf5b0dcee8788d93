"""Presentation of results: style, curves, claims, saved artifacts and the report."""
