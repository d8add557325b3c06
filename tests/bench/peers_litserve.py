"""The server of the contender ``litserve``: python peers_litserve.py FOLDER THREADS PORT

A file of its own, since LitServe starts its workers by importing the API's module.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve as ls
from peers import BATCH, HuggingFace


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        import torch

        torch.set_num_threads(int(sys.argv[2]))
        self._model = HuggingFace(sys.argv[1])

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, texts: list[str]) -> list[Any]:
        return self._model.encode(texts)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"row": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Api(max_batch_size=2 * BATCH, batch_timeout=0.05), accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[3]), generate_client_file=False, log_level="error")
