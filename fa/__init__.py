"""fa: the Flag Aggregator and the rules it is compared with, for distributed training with faulty workers."""

from fa import irls
from fa.rules import RULES, Aggregate, Decision, Rule, aggregate, make_rule

__version__ = "0.1.0"

__all__ = ["RULES", "Aggregate", "Decision", "Rule", "aggregate", "irls", "make_rule"]
