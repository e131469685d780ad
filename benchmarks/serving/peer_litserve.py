"""The model under LitServe: `peer_litserve.py MODEL PORT`. It takes JSON or forms, so the bytes go in base64.

Annotations are evaluated here, for LitServe reads those of its methods.
"""

import base64
import sys
from typing import Any

import litserve
import numpy as np
from ai_edge_litert.interpreter import Interpreter


class Api(litserve.LitAPI):
    """One worker process, batches off: the fastest setting for single requests."""

    def setup(self, device: str) -> None:
        self.interpreter = Interpreter(sys.argv[1], num_threads=1)
        self.interpreter.allocate_tensors()
        self.input, self.output = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["x"]), self.input["dtype"]).reshape(self.input["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self.input["index"], x)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output["index"])

    def encode_response(self, output: np.ndarray) -> dict[str, str]:
        return {"y": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
