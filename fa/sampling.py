"""How a worker's minibatch is drawn: the names, for who must check one before torch is loaded."""

SAMPLINGS = ("random", "cycled")
"""Algorithm 1's fresh minibatch, and the released code's fixed slice of the data (see `fa.data.batches.minibatch`)."""
