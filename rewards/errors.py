"""What can go wrong while scoring that is nobody's merit or fault.

    RuntimeError
      └─ InfrastructureError   the machine failed: retry, then leave the trajectory out (invariant 7)

What a policy can cause by itself never raises: it is a score of 0 or an observation.
"""

from __future__ import annotations


class InfrastructureError(RuntimeError):
    """The sandbox, the network or a service failed. It is never turned into a reward."""
