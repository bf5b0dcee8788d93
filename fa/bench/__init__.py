"""How long the rules take beside the mean, beside other libraries, and beside the paper's own way: `fa bench`."""
