"""The child process of `resolve.py`: converts one source to .tflite. What the frameworks print goes to the log."""

from __future__ import annotations

import sys
from pathlib import Path

from regatta_fleet.optimize.process import serve
from regatta_fleet.optimize.samples import read_samples
from regatta_fleet.optimize.sources.made import write_made
from regatta_fleet.optimize.sources.onnx_model import convert_onnx
from regatta_fleet.optimize.sources.resolve import ConvertAnswer, ConvertSpec
from regatta_fleet.optimize.sources.tensorflow_model import convert_keras, convert_savedmodel
from regatta_fleet.optimize.usercode import guarded, load_file, load_module
from regatta_protocol.errors import Rejected

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Convert what `resolve` asks for; 0 when an answer was written."""
    return serve(arguments, ConvertSpec, _run, lambda spec: f"converting {spec.place}")


def _run(spec: ConvertSpec) -> ConvertAnswer:
    place, output = Path(spec.place), Path(spec.output)
    if spec.kind == "savedmodel":
        taken = convert_savedmodel(place, output, spec.signature)
        return ConvertAnswer(words=(f"converted from {taken} of the SavedModel {place.name} by TensorFlow",))
    if spec.kind == "keras":
        convert_keras(place, output)
        return ConvertAnswer(words=(f"converted from {place.name} by TensorFlow",))
    sample = read_samples(Path(spec.samples)).x[:1]
    if spec.kind == "onnx":
        convert_onnx(place, output, sample, spec.layout)
        return ConvertAnswer(words=(f"converted from {place.name} by onnx2torch and litert-torch",))
    assert spec.factory is not None
    name = place.name if place.suffix == ".py" else spec.place
    module = load_file(place) if place.suffix == ".py" else load_module(spec.place)
    factory = getattr(module, spec.factory, None)
    if not callable(factory):
        raise Rejected(f"{name} has no function {spec.factory}: define one that returns the module, trained")
    model = guarded(name, f"{spec.factory}()", lambda: factory())
    write_made(model, output, sample, spec.layout, f"{name}: what {spec.factory}() returned")
    return ConvertAnswer(words=(f"converted from {name}:{spec.factory} by litert-torch",))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
