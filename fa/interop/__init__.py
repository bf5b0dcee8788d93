"""Other libraries' rules and attacks as ones of this package, named LIBRARY:NAME wherever a name is taken.

The other way round nothing is needed: a `fa.Rule` takes a list of vectors and returns one, as they expect.
"""
