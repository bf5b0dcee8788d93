"""How workers come by their images: the names, for who must check one before torch is loaded."""

SAMPLINGS = ("random", "cycled")
"""Algorithm 1's fresh minibatch, and the released code's fixed slice of the data (see `fa.data.batches.minibatch`)."""

SPLITS = ("iid", "dirichlet", "classes")
"""All workers' from the whole training set, or each honest worker's own share of it (see `fa.data.splits`)."""
