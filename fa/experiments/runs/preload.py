"""Load what every run needs. A fork server imports this module once, and its children inherit the result.

Loading torch and the compiled passes takes longer than a short run.
"""

import torch

import fa.training.loop  # noqa: F401
from fa.rules import RULES, make_rule

_threads = torch.get_num_threads()
torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: a child would hang.
for _name in RULES:
    make_rule(_name, f=1)(torch.eye(8, 64))
torch.set_num_threads(_threads)
