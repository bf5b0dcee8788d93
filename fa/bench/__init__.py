"""Time of the rules, of other libraries, and of FA by SVDs: `fa bench`."""
