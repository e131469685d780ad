"""The model under MLServer, in its own process (parallel_workers 0), asked over gRPC: its fastest setting."""

from __future__ import annotations

from ai_edge_litert.interpreter import Interpreter
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):
    """A TFLite file, named by the model's uri."""

    async def load(self) -> bool:
        self.interpreter = Interpreter(self.settings.parameters.uri, num_threads=1)
        self.interpreter.allocate_tensors()
        self.input, self.output = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        self.interpreter.set_tensor(self.input["index"], x)
        self.interpreter.invoke()
        output = NumpyCodec.encode_output("y", self.interpreter.get_tensor(self.output["index"]))
        return InferenceResponse(model_name=self.name, outputs=[output])
