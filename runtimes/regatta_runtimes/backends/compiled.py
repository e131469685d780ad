"""LiteRT's CompiledModel, of the package ai-edge-litert: on the processor, a GPU (WebGPU) or an NPU (vendor plug-ins).

An accelerator is asked for alone. Together with the processor, LiteRT computes there whatever the accelerator does not
take, all of it if need be, and still says that it is fully accelerated (measured with 2.3); alone, it refuses. What
would be computed by the processor under the accelerator's name is a CpuFallback.

`delegate` is cpu, gpu, or any other name for an NPU. Options of gpu: the fields of LiteRT's GpuOptions (enforce_f32…),
and allow_software, for tests on a processor that plays a GPU. Options of an NPU: graph_backend and performance_mode
of OpenVINO, compiler_plugin_path and dispatch_library_path.

CompiledModel does not tell quantization, so the tensors' specs are read from the file.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from regatta_protocol.errors import Rejected
from regatta_runtimes.backends.compiled_session import VENDOR_ERRORS, CompiledModelFile, CompiledSession
from regatta_runtimes.backends.vendor_log import taken_in
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CpuFallback, CreateFailed, RuntimeMissing, one_line
from regatta_runtimes.model.flatbuffer import read_graph, survey
from regatta_runtimes.worker.samples import noise
from regatta_runtimes.worker.session import Session

__all__ = ["open_session", "version"]

_NOT_TAKEN = "ops are not accelerated"  # how LiteRT refuses when an accelerator alone does not take the whole model
_ADAPTER = re.compile(r"Selected adapter: (.*)")
_SOFTWARE = "adapterType=CPU"
# From so many bytes of float weights on, two different devices do not add up alike to the last bit: five float models
# of MLPerf Tiny differed on both LiteRT's GPU and OpenVINO, and a fallback never did. Integer models may be alike.
_TELLING_BYTES = 4096
_FLOATS = ("float32", "float16")


def _vendor() -> Any:  # noqa: ANN401 - an untyped module
    try:
        return import_module("ai_edge_litert.compiled_model")
    except ImportError as err:
        raise RuntimeMissing(
            f"LiteRT's compiled models cannot be imported ({err}): pip install 'ai-edge-litert>=2.1' "
            "(64-bit boards, Python 3.10 or newer)"
        ) from err


def version() -> str:
    """Return the version that is installed, after importing it."""
    _vendor()
    return metadata.version("ai-edge-litert")


def open_session(candidate: Candidate, model_path: Path) -> Session:
    """Return the model compiled for the processor or for the accelerator alone.

    Raises:
        CreateFailed: when the model needs another delegate, an option is wrong, or LiteRT refuses the model.
        CpuFallback: when the processor would compute it under the accelerator's name.
    """
    vendor = _vendor()
    file = _read(model_path)
    on_npu = candidate.delegate not in ("cpu", "gpu")
    unmet = [name for name in file.found.requires if name != candidate.delegate and not (on_npu and name == "npu")]
    if unmet:  # LiteRT would take the file, and fail at its first inference
        raise CreateFailed(f"{candidate.id} cannot run {model_path.name}: it requires {', '.join(unmet)}", file.specs)
    if candidate.delegate == "cpu":
        return _open_on_cpu(vendor, candidate, file)
    expected = None
    if _answers_tell(file):
        expected = _answer(_open_on_cpu(vendor, Candidate(candidate.runtime, candidate.variant, "cpu", 1), file))
    session = _open_on_accelerator(vendor, candidate, file)
    if expected is not None and _answer(session) == expected:
        session.close()
        raise CpuFallback(f"{candidate.id} answers as the processor does, to the last bit: it computes there")
    return session


def _read(model_path: Path) -> CompiledModelFile:
    """Return what the file holds.

    Raises:
        CreateFailed: when it is no sound TFLite file.
    """
    try:
        with model_path.open("rb") as file:
            # never closed by hand: after Rejected its traceback still holds views, and closing would raise BufferError
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return CompiledModelFile(model_path, survey(view), read_graph(view))
    except (Rejected, ValueError, OSError) as err:
        raise CreateFailed(f"{model_path.name} cannot be opened: {one_line(err)}") from err


def _answers_tell(file: CompiledModelFile) -> bool:
    """Return whether two devices must differ in this model's answers, if only in the last bit.

    Holding the answers against the processor's needs no word of the vendor's, so it holds when a later version of
    LiteRT falls back in silence.
    """
    floats = sum(size for name, size in file.found.weights.items() if name in _FLOATS)
    return not file.found.requires and file.found.precision in _FLOATS and floats >= _TELLING_BYTES


def _answer(session: CompiledSession) -> list[bytes]:
    """Return the outputs on noise, bit by bit."""
    return [output.tobytes() for output in session.run(noise(session.inputs))]


def _open_on_cpu(vendor: Any, candidate: Candidate, file: CompiledModelFile) -> CompiledSession:  # noqa: ANN401
    options = vendor.Options(cpu_options=vendor.CpuOptions(num_threads=candidate.threads))
    try:
        model = vendor.CompiledModel.from_file(str(file.path), options=options)
    except VENDOR_ERRORS as err:
        raise CreateFailed(f"{candidate.id} cannot build {file.path.name}: {one_line(err)}", file.specs) from err
    return CompiledSession.over(model, candidate, file)


def _open_on_accelerator(vendor: Any, candidate: Candidate, file: CompiledModelFile) -> CompiledSession:  # noqa: ANN401
    """Return the model compiled for the accelerator alone, after looking at what LiteRT says of it."""
    given = dict(candidate.plugin.options) if candidate.plugin is not None else {}
    allow_software = given.pop("allow_software", "false") == "true"
    try:
        with taken_in() as log:
            options, environment = _options(vendor, candidate, given)
            model = vendor.CompiledModel.from_file(str(file.path), options=options, environment=environment)
    except VENDOR_ERRORS as err:
        why = f"{file.path.name}: {log.causes() or one_line(err)}"
        if _NOT_TAKEN in str(err):
            raise CpuFallback(f"{candidate.id} would leave operators to the processor in {why}", file.specs) from err
        raise CreateFailed(f"{candidate.id} cannot build {why}", file.specs) from err
    adapter = _ADAPTER.search(log.text)
    if adapter is not None and _SOFTWARE in adapter[1] and not allow_software:
        raise CpuFallback(
            f"{candidate.id}: the GPU is a software adapter, which runs on the processor ({adapter[1].strip()}): "
            "install the GPU's own Vulkan driver",
            file.specs,
        )
    if not model.is_fully_accelerated():
        raise CpuFallback(f"{candidate.id} would leave operators of {file.path.name} to the processor", file.specs)
    return CompiledSession.over(model, candidate, file)


def _options(vendor: Any, candidate: Candidate, given: dict[str, str]) -> tuple[Any, Any]:  # noqa: ANN401
    """Return LiteRT's options and its environment for an accelerator.

    Raises:
        CreateFailed: when an option is not known, or has a value that is not.
    """
    if candidate.delegate == "gpu":
        known = {each.name for each in fields(vendor.GpuOptions)}
        _refuse_unknown(candidate, given, known | {"allow_software"})
        wrong = sorted(key for key, value in given.items() if value not in ("true", "false"))
        if wrong:
            raise CreateFailed(f"{candidate.id}: option {wrong[0]} is {given[wrong[0]]!r}: it is true or false")
        gpu = vendor.GpuOptions(**{key: value == "true" for key, value in given.items()})
        return vendor.Options(hardware_accelerators=vendor.HardwareAccelerator.GPU, gpu_options=gpu), None
    intel = vendor.IntelOpenVinoOptions
    choices = {"graph_backend": intel.GRAPH_BACKEND, "performance_mode": intel.PERFORMANCE_MODE}
    paths = ("compiler_plugin_path", "dispatch_library_path")
    _refuse_unknown(candidate, given, {*choices, *paths})
    chosen: dict[str, Any] = {}
    for key, values in choices.items():
        if key in given:
            if given[key] not in values.__members__:
                raise CreateFailed(
                    f"{candidate.id}: option {key} is {given[key]!r}: it is one of {', '.join(values.__members__)}"
                )
            chosen[key] = values[given[key]]
    places = {key: given[key] for key in paths if key in given}
    environment = vendor.Environment.create(**places) if places else None
    options = vendor.Options(
        hardware_accelerators=vendor.HardwareAccelerator.NPU,
        intel_openvino_options=intel(**chosen) if chosen else None,
    )
    return options, environment


def _refuse_unknown(candidate: Candidate, given: Mapping[str, str], known: set[str]) -> None:
    strange = sorted(set(given) - known)
    if strange:
        raise CreateFailed(
            f"{candidate.id}: there is no option {strange[0]!r} of {candidate.delegate}; there are "
            f"{', '.join(sorted(known))}"
        )
