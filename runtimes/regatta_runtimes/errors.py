"""What can go wrong around a runtime.

Rejected
├── RuntimeMissing   the runtime cannot be used on this machine; the message says what to install
└── CreateFailed     no interpreter can be built for this model with this candidate
    ├── PrepareFailed  it can be built, but its tensors or its delegate cannot be prepared
    └── CpuFallback    the processor would compute, under the accelerator's name
Retryable
├── InvokeFailed     the runtime failed while inferring; another candidate, or a new worker, may do better
└── SensorFault      a power sensor gave no figure this time; the message says why
    └── CounterReset its energy counter was set back: what was read before says nothing any more
"""

from __future__ import annotations

from regatta_protocol.errors import Rejected, Retryable
from regatta_protocol.values import TensorSpec

__all__ = [
    "CounterReset",
    "CpuFallback",
    "CreateFailed",
    "InvokeFailed",
    "PrepareFailed",
    "RuntimeMissing",
    "SensorFault",
    "one_line",
]


class RuntimeMissing(Rejected):
    """The runtime cannot be used on this machine."""


class CreateFailed(Rejected):
    """No interpreter can be built for this model with this candidate.

    `specs` are the model's inputs and outputs where the runtime could read at least those.
    """

    def __init__(
        self, message: str, specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] | None = None
    ) -> None:
        super().__init__(message)
        self.specs = specs


class PrepareFailed(CreateFailed):
    """The model is built, but its tensors cannot be allocated, or the delegate refuses its graph."""


class CpuFallback(CreateFailed):
    """The runtime takes the model for the accelerator, and the processor would compute it."""


class InvokeFailed(Retryable):
    """The runtime failed while inferring."""


class SensorFault(Retryable):
    """A power sensor gave no figure this time."""


class CounterReset(SensorFault):
    """Its energy counter was set back: what was read before says nothing any more."""


def one_line(err: BaseException) -> str:
    """Return a vendor's message on one line, bounded."""
    return " ".join(str(err).split())[:300] or type(err).__name__
