"""LiteRT's compiled models: what cannot run on the accelerator is refused, and no processor passes for one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quick_race import quicken_races
from regatta_protocol.measurement import Outcome, RaceReport
from regatta_protocol.values import Plugin
from regatta_runtimes.backends import compiled
from regatta_runtimes.backends.vendor_log import taken_in
from regatta_runtimes.candidate import Candidate
from regatta_runtimes.errors import CpuFallback, CreateFailed, RuntimeMissing
from regatta_runtimes.race.run import RaceSpec, RaceVariant, run_race
from shared_data import shared_file, shared_files
from tiny_models import dense_model, unary_model

WIDE = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)  # 16 KB of weights
ADAPTER = "I0000 00:00:1.2 3 environment.cc:532] Selected adapter: {}, arch={}, backend=Vulkan, adapterType={}\n"
SOFTWARE = ADAPTER.format("llvmpipe (LLVM 15.0.6, 256 bits)", "software", "CPU / Software")
HARDWARE = ADAPTER.format("V3D 7.1.7", "v3d", "IntegratedGPU / Integrated GPU")


@pytest.fixture(autouse=True)
def _installed() -> None:
    try:
        compiled.version()
    except RuntimeMissing as err:
        pytest.skip(str(err))


def _gpu(**options: str) -> Candidate:
    return Candidate("compiled", "v", "gpu", 1, Plugin(options=options))


def _pretending(says: str, *, claims: bool = True, changes: float = 0.0) -> Callable[[], Any]:
    """Return what gives LiteRT with a GPU: it prints `says`, claims to be accelerated, and is off by `changes`."""
    vendor = compiled._vendor()

    class Model(vendor.CompiledModel):  # type: ignore[name-defined,misc]  # an untyped vendor
        is_gpu = False

        @classmethod
        def from_file(cls, model_path: str, options: Any = None, environment: Any = None) -> Any:
            on_gpu = options.hardware_accelerators == vendor.HardwareAccelerator.GPU
            if on_gpu:
                os.write(2, says.encode())
                options = vendor.Options(cpu_options=vendor.CpuOptions(num_threads=1))
            model = super().from_file(model_path, options=options, environment=environment)
            model.is_gpu = on_gpu
            return model

        def is_fully_accelerated(self) -> bool:
            return claims

        def create_output_buffers(self, signature_index: int) -> Any:
            buffers = super().create_output_buffers(signature_index)
            return [_Off(buffer, changes if self.is_gpu else 0.0) for buffer in buffers]

    return lambda: SimpleNamespace(**{**vars(vendor), "CompiledModel": Model})


class _Off:
    """A buffer that reads other values than were computed."""

    def __init__(self, buffer: Any, by: float) -> None:
        self._buffer, self._by = buffer, by
        self.capsule = buffer.capsule

    def read(self, count: int, dtype: Any) -> Any:
        return self._buffer.read(count, dtype) + np.float32(self._by)


@pytest.fixture(autouse=True)
def _quick_races(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_races(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.tflite"
    path.write_bytes(dense_model(WIDE, np.zeros(64, dtype=np.float32)))
    return path


def test_a_software_adapter_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Its name and type are in the reason; an explicit option lets it take part."""
    monkeypatch.setattr(compiled, "_vendor", _pretending(SOFTWARE, changes=1e-5))

    with pytest.raises(CpuFallback, match=r"software adapter.*llvmpipe.*adapterType=CPU"):
        compiled.open_session(_gpu(), model)

    compiled.open_session(_gpu(allow_software="true"), model).close()


def test_a_gpu_of_its_own_is_taken(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """All operators count as the accelerator's, for it takes all or none."""
    monkeypatch.setattr(compiled, "_vendor", _pretending(HARDWARE, changes=1e-5))

    session = compiled.open_session(_gpu(), model)

    assert session.delegated_nodes == 1
    session.close()


def test_what_says_that_it_is_not_fully_accelerated_is_refused(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Though it could be opened."""
    monkeypatch.setattr(compiled, "_vendor", _pretending(HARDWARE, claims=False, changes=1e-5))

    with pytest.raises(CpuFallback, match="leave operators"):
        compiled.open_session(_gpu(), model)


def test_the_processors_own_answer_is_no_accelerators(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """However much the vendor claims: equal floats to the last bit were computed by the same kernels."""
    monkeypatch.setattr(compiled, "_vendor", _pretending(HARDWARE))

    with pytest.raises(CpuFallback, match="to the last bit"):
        compiled.open_session(_gpu(), model)


def test_a_model_without_weights_may_answer_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The absolute value is the same to the last bit wherever it is computed."""
    (tmp_path / "abs.tflite").write_bytes(unary_model())
    monkeypatch.setattr(compiled, "_vendor", _pretending(HARDWARE))

    compiled.open_session(_gpu(), tmp_path / "abs.tflite").close()


def test_an_npu_without_its_plugin_is_a_fallback_and_says_what_is_missing(model: Path) -> None:
    """Here LiteRT's OpenVINO plug-in has no OpenVINO to load."""
    with pytest.raises(CpuFallback, match="would leave operators to the processor"):
        compiled.open_session(Candidate("compiled", "v", "npu", 1), model)


@pytest.mark.parametrize("delegate", ["cpu", "gpu", "npu"])
def test_a_model_for_another_accelerator_is_refused_before_it_runs(delegate: str) -> None:
    """LiteRT would open it, and fail at the first inference."""
    path = shared_file("coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite")

    with pytest.raises(CreateFailed, match="requires edgetpu") as caught:
        compiled.open_session(Candidate("compiled", "v", delegate, 1), path)

    assert caught.value.specs is not None
    assert caught.value.specs[0][0].shape == (1, 128, 128, 3)


@pytest.mark.parametrize(
    ("delegate", "options", "words"),
    [
        ("gpu", {"turbo": "true"}, "no option 'turbo' of gpu.*enforce_f32"),
        ("gpu", {"enforce_f32": "yes"}, "true or false"),
        ("npu", {"graph_backend": "ABACUS"}, "one of CPU, GPU, NPU"),
        ("npu", {"turbo": "1"}, "no option 'turbo' of npu.*graph_backend"),
    ],
)
def test_a_wrong_option_is_refused(model: Path, delegate: str, options: dict[str, str], words: str) -> None:
    """By its name, with what there is."""
    with pytest.raises(CreateFailed, match=words):
        compiled.open_session(Candidate("compiled", "v", delegate, 1, Plugin(options=options)), model)


def test_real_models_answer_as_the_interpreter_does() -> None:
    """Each real CPU model: the same kernels give the same outputs, in the same order."""
    from regatta_runtimes.backends import litert
    from regatta_runtimes.worker.samples import noise

    for path in shared_files("mlperf_tiny/*.tflite"):
        ours = compiled.open_session(Candidate("compiled", "v", "cpu", 1), path)
        theirs = litert.open_session(Candidate("litert", "v", "xnnpack", 1), path)
        inputs = noise(ours.inputs)

        assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
        for got, want in zip(ours.run(inputs), theirs.run(inputs), strict=True):
            np.testing.assert_array_equal(got, want)
        ours.close()


def test_what_native_code_prints_is_taken_in_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """Past Python's own sys.stderr, by a child process here; the causes are told once."""
    with taken_in() as log:
        for _ in range(2):
            subprocess.run(["sh", "-c", "echo 'ERROR: [a.cc:1] no device' >&2"], check=True, timeout=10)
        os.write(2, b"INFO: nothing of note\n\xe2\x94\x94 libgone.so: cannot open\n")

    assert log.causes() == "no device; libgone.so: cannot open"
    assert capfd.readouterr().err == log.text


def test_a_failure_is_passed_on_too(capfd: pytest.CaptureFixture[str]) -> None:
    """The log is whole although the work inside raised."""
    with pytest.raises(ValueError, match="no"), taken_in() as log:
        os.write(2, b"last words\n")
        raise ValueError("no")

    assert log.text == "last words\n"
    assert capfd.readouterr().err == "last words\n"


def _race_of_npu(folder: Path, model: Path, **options: str) -> RaceReport:
    """Return the report of a race with an NPU that is told the options."""
    table = folder / "npu.json"
    table.write_text(json.dumps({"openvino": {"what": "an NPU", "runtimes": ["compiled"], "options": options}}))
    spec = RaceSpec(
        model="m",
        version=1,
        variants=(RaceVariant(name="v", path=str(model)),),
        threads=(1,),
        runtimes=("litert", "compiled"),
        delegate_files=(str(table),),
    )
    return run_race(spec, consult=lambda _key: None)


def test_a_race_names_the_fallback_and_places_the_processor_openly(tmp_path: Path, model: Path) -> None:
    """The NPU's candidate is a cpu_fallback, and what is placed says that it is the processor."""
    report = _race_of_npu(tmp_path, model)

    outcomes = {result.id: result.outcome for result in report.candidates}
    assert outcomes["compiled/v/openvino/t1"] == Outcome.CPU_FALLBACK
    placed = report.placed()
    assert placed is not None
    assert placed.delegate in ("xnnpack", "none", "cpu")


def test_what_a_delegate_is_told_makes_another_race(tmp_path: Path, model: Path) -> None:
    """A result is not taken from a race whose delegate was told something else."""
    one, other = (_race_of_npu(tmp_path, model, graph_backend=name).key for name in ("CPU", "NPU"))

    assert one is not None and other is not None
    assert one != other
