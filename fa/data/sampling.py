"""How workers come by their images: the names, for who must check one before torch is loaded."""

SAMPLINGS = ("random", "cycled", "sequential")
"""Algorithm 1's fresh minibatch, a fixed slice of the data without an end, and the released code's passes over a fixed
slice, each with a short last minibatch (see `fa.data.batches.minibatch`)."""

SPLITS = ("iid", "dirichlet", "classes")
"""All workers' from the whole training set, or each honest worker's own share of it (see `fa.data.splits`)."""
