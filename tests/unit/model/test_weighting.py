"""Task weights against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from model.training.weighting import (
    TaskWeights,
    adam,
    famo_coefficients,
    famo_gradient,
    uncertainty_coefficients,
    uncertainty_gradient,
)

TASKS = ["a", "b", "c"]


def test_equal_weights_are_one() -> None:
    weights = TaskWeights("equal", TASKS, rate=0.1, decay=0.0)
    assert weights.coefficients({"a": 3.0, "c": 0.1}) == {"a": 1.0, "c": 1.0}
    weights.learn({"a": 3.0, "c": 0.1})
    assert not weights.state.any()


def test_uncertainty_by_hand() -> None:
    s, losses = np.array([0.0, math.log(2.0)]), np.array([3.0, 4.0])
    np.testing.assert_allclose(uncertainty_coefficients(s), [1.0, 0.5])
    # (1/2) (1/2 - 3) = -1.25 and (1/2) (1/2 - 4/2) = -0.75
    np.testing.assert_allclose(uncertainty_gradient(s, losses), [-1.25, -0.75])


def test_the_uncertainty_gradient_is_that_of_the_objective() -> None:
    s = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    ((-s).exp() * losses + s / 2).mean().backward()
    assert s.grad is not None
    np.testing.assert_allclose(uncertainty_gradient(s.detach().numpy(), losses.numpy()), s.grad.numpy())


def test_uncertainty_comes_to_rest_where_the_weight_is_half_the_inverse_loss() -> None:
    weights = TaskWeights("uncertainty", TASKS, rate=0.05, decay=0.0)
    for _ in range(1000):
        weights.learn({"a": 0.25, "b": 2.0})
    found = weights.coefficients({"a": 0.25, "b": 2.0, "c": 1.0})
    assert found["a"] == pytest.approx(2.0, rel=0.01)
    assert found["b"] == pytest.approx(0.25, rel=0.01)
    assert found["c"] == 1.0  # never present: as it began


def test_famo_by_hand() -> None:
    # z = (1/2, 1/2), losses 1 and 3: z / L = (1/2, 1/6), c = 3/2, N c z / L = (3/2, 1/2)
    np.testing.assert_allclose(famo_coefficients(np.zeros(2), np.array([1.0, 3.0])), [1.5, 0.5])
    # w = (log 3, 0): z = (3/4, 1/4), z / L = (3/4, 1/12), their sum 5/6: 2 * (9/10, 1/10)
    np.testing.assert_allclose(famo_coefficients(np.array([math.log(3), 0.0]), np.array([1.0, 3.0])), [1.8, 0.2])
    # the first halves, the second stays: delta = (log 2, 0), z (delta - z.delta) = (log 2 / 4, -log 2 / 4)
    gradient = famo_gradient(np.zeros(2), np.array([1.0, 3.0]), np.array([0.5, 3.0]))
    np.testing.assert_allclose(gradient, [math.log(2) / 4, -math.log(2) / 4])


def test_famo_follows_the_authors_code() -> None:
    """github.com/Cranial-XIX/FAMO, famo.py, retyped for torch's own optimiser; loss and one update of the logits."""
    w = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([w], lr=0.025, weight_decay=0.001)
    before = torch.tensor([0.7, 2.0, 1.1], dtype=torch.float64, requires_grad=True)
    after = torch.tensor([0.65, 2.1, 0.9], dtype=torch.float64)
    z = torch.softmax(w, -1)
    c = (z / before).sum().detach()
    (before.log() * z.detach() / c).sum().backward()
    weights = TaskWeights("famo", TASKS, rate=0.025, decay=0.001)
    weights.state[0] = w.detach().numpy()
    losses = dict(zip(TASKS, before.tolist(), strict=True))
    assert before.grad is not None
    found = np.array(list(weights.coefficients(losses).values())) / 3  # combine() divides by the number of tasks
    np.testing.assert_allclose(found, before.grad.numpy(), rtol=1e-6)
    delta = before.detach().log() - after.log()
    (w.grad,) = torch.autograd.grad(torch.softmax(w, -1), w, grad_outputs=delta)
    optimiser.step()
    weights.learn(losses, dict(zip(TASKS, after.tolist(), strict=True)))
    np.testing.assert_allclose(weights.state[0], w.detach().numpy(), rtol=1e-9)


def test_famo_gives_more_to_the_task_that_falls_behind() -> None:
    weights = TaskWeights("famo", TASKS, rate=0.025, decay=0.001)
    for _ in range(50):
        weights.learn({"a": 1.0, "b": 1.0}, {"a": 0.9, "b": 1.0})
    found = weights.coefficients({"a": 1.0, "b": 1.0})
    assert found["b"] > 1.5 > 0.5 > found["a"]
    assert sum(found.values()) == pytest.approx(2)
    assert weights.state[0, 2] == 0  # absent, so untouched
    with pytest.raises(ValueError, match="famo"):
        TaskWeights("gradnorm", TASKS, rate=0.1, decay=0.0)


def test_adam_is_torchs() -> None:
    parameter = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([parameter], lr=0.1)
    value, state = np.array([0.5, -0.5]), np.zeros((3, 2))
    for gradient in ([1.0, -2.0], [0.5, 0.1], [-3.0, 0.0]):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
        value, state = adam(value, np.array(gradient), state, 0.1)
    np.testing.assert_allclose(value, parameter.detach().numpy(), rtol=1e-9)
