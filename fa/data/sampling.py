"""Names of samplings and splits, importable without torch."""

SAMPLINGS = ("random", "cycled", "sequential")
"""Ways to draw minibatches, defined in `fa.data.batches.minibatch`.

"random" draws afresh, as in Algorithm 1. "cycled" cycles through a fixed slice. "sequential" makes passes
over a fixed slice, each with a short last minibatch, as in the released code.
"""

SPLITS = ("iid", "dirichlet", "classes", "gamma")
"""Ways to distribute the training images: all workers share the whole set, or each honest worker has its own part.

The parts are defined in `fa.data.splits`.
"""
