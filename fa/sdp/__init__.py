"""The convex relaxation of eq. 5 by cvxpy, and the certificate that needs no solver."""

from fa.sdp.certificate import Certificate, certify, relative_gap
from fa.sdp.relaxation import Relaxation, solve

__all__ = ["Certificate", "Relaxation", "certify", "relative_gap", "solve"]
