"""One module per figure: NAME, `study`, `draw` and `claims`."""
