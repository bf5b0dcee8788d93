"""What every run needs, made ready by importing this module: a fork server does so once, and its children inherit it.

Loading torch and the compiled passes takes longer than a short run.
"""

import torch

import fa.training.loop  # noqa: F401
from fa.rules import RULES, make_rule

_threads = torch.get_num_threads()
torch.set_num_threads(1)  # a thread of OpenMP would not live on in a forked child, which would wait for it for ever
for _name in RULES:
    make_rule(_name, f=1)(torch.eye(8, 64))
torch.set_num_threads(_threads)
