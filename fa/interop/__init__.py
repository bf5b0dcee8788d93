"""Other libraries' rules, steps and attacks as ones of this package, named LIBRARY:NAME wherever a name is taken.

The other way round little is needed: a `fa.Rule` takes a list of vectors and returns one, as they expect.
"""
