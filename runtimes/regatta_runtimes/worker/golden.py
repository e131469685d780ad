"""Golden samples of a bundle: inputs, and each variant's outputs by the reference kernels, made in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from regatta_protocol.errors import Misuse, Rejected
from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.worker.job import Command, Failed, Reference, Referenced
from regatta_runtimes.worker.nursery import Nursery, WorkerEnded

__all__ = ["write_golden"]

_BUDGET_S = 20.0  # MobileNetV2 takes 0.1 s a sample with reference kernels: 16 samples fit ten times
_RUNTIMES = ("litert", "tflite", "onnx")  # whose worker computes; a variant of another format has its own runtime


def write_golden(
    variants: Mapping[str, Path],
    output: Path,
    *,
    samples: Path | None = None,
    count: int = 16,
    seed: int = 0,
    timeout_s: float = 120.0,
) -> None:
    """Write `output`, an .npz file as manifest.py describes (`in.{i}`, `out.{variant}.{j}`).

    Variants that no reference kernel can compute (compiled for an accelerator) have no outputs in it. A slow model
    gets fewer samples than `count`, at least two.

    Args:
        variants: name -> model file; all must take inputs of the same shapes.
        samples: .npz with `x`, real values [n, …] for input 0; without it, seeded noise over each input's real range.

    Raises:
        Rejected: when the samples do not fit, the inputs differ, no variant can be computed, or the worker ends.
        Misuse: when no runtime is installed.
    """
    command: Command = Reference(
        variants={name: str(path.absolute()) for name, path in variants.items()},
        output=str(output.absolute()),
        samples=None if samples is None else str(samples.absolute()),
        count=count,
        seed=seed,
        budget_s=_BUDGET_S,
    )
    missing: list[str] = []
    for runtime in _RUNTIMES:
        try:
            with Nursery(runtime) as nursery:
                answer = nursery.start().ask(command, timeout_s)
        except RuntimeMissing as err:
            missing.append(str(err))
            continue
        except WorkerEnded as err:
            raise Rejected(f"no golden samples of {', '.join(variants)}: the worker {err.reason}") from err
        if isinstance(answer, Referenced):
            return
        if isinstance(answer, Failed) and answer.stage != "missing":
            raise Rejected(f"no golden samples of {', '.join(variants)}: {answer.reason}")
    raise Misuse(f"no runtime is installed to make golden samples: {'; '.join(missing)}")
