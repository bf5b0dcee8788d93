"""The attack of a run."""

from fa.attacks import Attack, make_attack
from fa.rules import make_rule
from fa.training.config import TrainConfig


def configured_attack(config: TrainConfig) -> Attack:
    """Create a run's attack with its options, and with the run's rule if the attack uses it.

    Args:
        config: The run's configuration.

    Returns:
        The attack.

    Raises:
        ValueError: The attack, the rule, or an option is invalid.
    """
    rule = make_rule(config.rule, f=config.rule_f, **config.options)
    return make_attack(config.attack, rule, **dict(config.attack_options))
