"""Which runtimes work here: each is asked to build and run the smallest model, for importing proves nothing.

What works is handed over as a nursery, which starts the workers of one runtime.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from importlib import resources

from regatta_runtimes.errors import RuntimeMissing
from regatta_runtimes.race.spec import RaceSpec
from regatta_runtimes.runtime import ModelFormat, runtime_facts
from regatta_runtimes.worker.job import Failed, Open
from regatta_runtimes.worker.nursery import Nursery, WorkerEnded

__all__ = ["open_nurseries", "probe_runtime"]

_PROBE_S = 20.0


def open_nurseries(
    spec: RaceSpec, formats: Collection[ModelFormat], stack: ExitStack
) -> tuple[dict[str, Nursery], dict[str, str | None]]:
    """Return the runtimes of the formats that are installed, and for each runtime None or why it cannot be used.

    Args:
        spec: which runtimes may race.
        formats: of the models.
        stack: closes the nurseries.
    """
    nurseries: dict[str, Nursery] = {}
    reasons: dict[str, str | None] = {}
    for runtime in dict.fromkeys((*spec.runtimes, *spec.backends)):
        if runtime_facts(runtime).model_format not in formats:
            continue
        try:
            nursery = stack.enter_context(Nursery(runtime, spec.backends))
            reasons[runtime] = None if runtime in spec.backends else probe_runtime(nursery)
        except RuntimeMissing as err:
            reasons[runtime] = str(err)
            continue
        nurseries[runtime] = nursery
    return nurseries, reasons


def probe_runtime(nursery: Nursery) -> str | None:
    """Return None when the runtime builds and runs the smallest model, or why not.

    tflite-runtime under numpy 2 can be imported and fails here: importing proves nothing.
    """
    facts = runtime_facts(nursery.runtime)
    with resources.as_file(resources.files("regatta_runtimes.race") / facts.probe) as path:
        worker = nursery.start()
        try:
            answer = worker.ask(
                Open(candidate_id=f"{nursery.runtime}/probe/{facts.plain}/t1", model_path=str(path)), _PROBE_S
            )
        except WorkerEnded as err:
            return f"{nursery.runtime} is installed, but its worker {err.reason}"
        finally:
            worker.close()
    if isinstance(answer, Failed):
        return f"{nursery.runtime} is installed, but cannot run the smallest model: {answer.reason}"
    return None
