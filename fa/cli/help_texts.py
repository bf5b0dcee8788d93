"""Names of rules and attacks for help texts."""

from __future__ import annotations

RULES = (
    "mean",
    "median",
    "trimmed_mean",
    "meamed",
    "phocas",
    "krum",
    "multi_krum",
    "bulyan",
    "fa",
    "geometric_median",
    "centered_clipping",
    "minimum_diameter_averaging",
    "caf",
    "monna",
)
"""Names of `fa.RULES`. They are repeated here, since `fa.rules` imports torch, which takes seconds."""

ATTACKS = (
    "random",
    "random_symmetric",
    "random_honest_norm",
    "random_shared",
    "random_reached",
    "gaussian",
    "collude",
    "alie",
    "ipm",
    "min_max",
    "min_sum",
    "line_search",
    "mimic",
    "drop",
    "chunk_loss",
    "sign_flip",
    "label_flipping",
    "zero",
    "nan",
    "none",
)
"""Names of `fa.attacks.ATTACKS`, repeated here for the same reason."""

RULE = f"Aggregation rule: {', '.join(RULES)}, FILE.py:NAME, or byzfl:NAME."
ATTACK = f"{', '.join(ATTACKS)}, FILE.py:NAME, or byzfl:NAME."
