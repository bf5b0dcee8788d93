"""Rules and attacks of other libraries, under names LIBRARY:NAME, and a strategy for Flower.

A `fa.Rule` needs no adapter in the other direction: it accepts a list of vectors and returns a vector.
"""

from fa.utils.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, ("byzfl", "flower"))
