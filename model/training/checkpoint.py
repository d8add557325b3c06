"""Checkpoints: all that a run needs to go on as if it had never stopped, in one safetensors file, written as one step.

A run of one thread that goes on from a checkpoint ends in the same bits as one that was never stopped. Random numbers
follow the step's number; what is left is where tensors lie: MKL's thin products (a head of three labels, a matrix times
a vector) round differently for memory that is not aligned to 16 bytes, and files are mapped at multiples of 8. So
everything read here is copied into memory of torch's own, which begins at multiples of 64.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.errors import ModelError
from model.network import Network
from model.training.made_from import MadeFrom
from model.training.optimiser import trained_parameters

_NETWORK, _OPTIMISER, _WEIGHTING = "network.", "optimiser.", "weighting"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: ``step`` of ``steps`` done, and the parts of what it is made from."""

    step: int
    steps: int
    made_from: Mapping[str, str]


def save_checkpoint(
    path: Path, network: Network, optimiser: torch.optim.Optimizer, weighting: Tensor, progress: Progress
) -> None:
    """Write what is trained, the optimiser's state, the tasks' weights and the progress. Raises ModelError."""
    tensors = {_WEIGHTING: weighting}
    for name, parameter in trained_parameters(network).items():
        tensors[_NETWORK + name] = parameter
        for key, value in optimiser.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMISER}{key}.{name}"] = value
    content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    fresh = path.with_suffix(".part")
    try:
        save_file(content, fresh, metadata={"progress": json.dumps(vars(progress))})
        with fresh.open("rb") as handle:
            os.fsync(handle.fileno())  # a rename must not come before its content
        os.replace(fresh, path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: the checkpoint cannot be written ({error}); free the disk or give another --out"
        ) from error


def load_checkpoint(
    path: Path, network: Network, optimiser: torch.optim.Optimizer, weighting: Tensor, expected: Progress
) -> int:
    """Put everything back in place; the steps done. Raises ModelError when the file is damaged or of another run."""
    try:
        with safe_open(path, framework="pt") as handle:
            content = json.loads(handle.metadata()["progress"])
            progress = Progress(content["step"], content["steps"], content.get("made_from", {}))
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: no readable checkpoint ({error}); start again without --resume") from error
    MadeFrom(expected.made_from).check(path, progress.made_from)
    if progress.steps != expected.steps:
        raise ModelError(f"{path} belongs to a run of {progress.steps} steps, not {expected.steps}; use its --out")
    parameters = trained_parameters(network)
    _check(path, tensors, {_NETWORK + name: p for name, p in parameters.items()} | {_WEIGHTING: weighting})
    weighting.copy_(tensors[_WEIGHTING])
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[_NETWORK + name])
    fused = {p for group in optimiser.param_groups if group.get("fused") for p in group["params"]}
    for name, value in tensors.items():
        if name.startswith(_OPTIMISER):
            key, _, owner = name.removeprefix(_OPTIMISER).partition(".")
            own = parameters[owner]
            # Steps are read on the CPU, where a GPU need not be waited for, but by fused kernels, which run elsewhere.
            optimiser.state[own][key] = value if key == "step" and own not in fused else value.to(own.device)
    return progress.step


def _check(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise ModelError(f"{path}: {name} is not there or has another shape; start again without --resume")
