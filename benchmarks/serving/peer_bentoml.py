"""The model under BentoML, one worker. Its public server takes no binary tensors, so the bytes go as base64 in JSON."""

from __future__ import annotations

import base64
import os

import bentoml
import numpy as np
from ai_edge_litert.interpreter import Interpreter


@bentoml.service(workers=1, metrics={"enabled": False}, tracing={"sample_rate": 0.0})
class Model:
    """The TFLite file that REGATTA_BENCH_MODEL names."""

    def __init__(self) -> None:
        self.interpreter = Interpreter(os.environ["REGATTA_BENCH_MODEL"], num_threads=1)
        self.interpreter.allocate_tensors()
        self.input, self.output = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]

    @bentoml.api
    async def predict(self, x: str) -> str:
        array = np.frombuffer(base64.b64decode(x), self.input["dtype"]).reshape(self.input["shape"])
        self.interpreter.set_tensor(self.input["index"], array)
        self.interpreter.invoke()
        return base64.b64encode(self.interpreter.get_tensor(self.output["index"]).tobytes()).decode()
