"""The loss of the source document, term by term."""

import numpy as np
import pytest
import torch
from torch import nn

from model.training.loss import OUTSIDE, SharedPenalty, combine, row_losses

LOGITS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]])
ALL = torch.ones(4, 3, dtype=torch.bool)
EVEN = torch.ones(4)


def test_the_loss_of_a_row_is_its_cross_entropy() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    expected = nn.functional.cross_entropy(LOGITS, labels, reduction="none")
    torch.testing.assert_close(row_losses(LOGITS, labels, ALL, EVEN), expected)


def test_two_class_rows_train_the_conditional_probability() -> None:
    labels = torch.tensor([0, 2, 2, 0])
    two = torch.tensor([True, False, True]).expand(4, 3)
    p = torch.softmax(LOGITS, 1)
    conditional = p[torch.arange(4), labels] / (p[:, 0] + p[:, 2])
    assert torch.isclose(row_losses(LOGITS, labels, two, EVEN).mean(), -conditional.log().mean())
    logits = LOGITS.clone().requires_grad_()
    row_losses(logits, labels, two, EVEN).mean().backward()
    assert logits.grad is not None
    assert (logits.grad[:, 1] == 0).all()  # the class that the data set does not know is left alone


def test_outside_rows_want_the_uniform_distribution() -> None:
    labels = torch.full((4,), OUTSIDE)
    sure = torch.tensor([[9.0, 0.0, 0.0]]).expand(4, 3)
    flat = torch.zeros(4, 3)
    assert row_losses(flat, labels, ALL, EVEN).mean() < row_losses(sure, labels, ALL, EVEN).mean()
    assert torch.isclose(row_losses(flat, labels, ALL, EVEN, outside_weight=1.0).mean(), torch.log(torch.tensor(3.0)))


def test_row_weights_scale_their_rows() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    weights = torch.tensor([2.0, 0.0, 0.0, 2.0])
    log_p = torch.log_softmax(LOGITS, 1)
    expected = -(2 * log_p[0, 0] + 2 * log_p[3, 0]) / 4
    assert torch.isclose(row_losses(LOGITS, labels, ALL, weights).mean(), expected)


def test_combine_counts_the_tasks_present() -> None:
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(3.0)}
    assert combine(losses, {}) == 2.0
    assert combine(losses, {"b": 2.0}) == 3.5


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.dense = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


def test_penalties_see_weight_matrices_only() -> None:
    body = Body()
    frobenius, l2sp = SharedPenalty(body, "frobenius", 0.5), SharedPenalty(body, "l2sp", 0.5)
    weight = body.dense.weight.detach().numpy()
    assert np.isclose(frobenius().item(), 0.25 * (weight**2).sum())
    assert l2sp().item() == 0.0
    with torch.no_grad():
        body.dense.weight += 1.0
        body.embedding.weight += 1.0
        body.norm.weight += 1.0
    assert np.isclose(l2sp().item(), 0.25 * 16)
    assert SharedPenalty(body, "none", 0.5)().item() == 0.0
    with pytest.raises(ValueError, match="l2sp"):
        SharedPenalty(body, "l1", 0.5)


def test_teachers_make_up_their_share_of_the_target() -> None:
    labels, taught = torch.tensor([0, 2, OUTSIDE, 1]), torch.softmax(LOGITS.flip(0), dim=1)
    plain = row_losses(LOGITS, labels, ALL, EVEN)
    soft = -(taught * torch.log_softmax(LOGITS, dim=1)).sum(1)
    half = row_losses(LOGITS, labels, ALL, EVEN, outside_weight=1.0, taught=taught, taught_share=0.5)
    whole = row_losses(LOGITS, labels, ALL, EVEN, outside_weight=1.0, taught=taught, taught_share=1.0)
    none = row_losses(LOGITS, labels, ALL, EVEN, taught=taught, taught_share=0.0)
    torch.testing.assert_close(whole, soft)
    torch.testing.assert_close(none, plain)
    inside = labels != OUTSIDE
    torch.testing.assert_close(half[inside], (plain[inside] + soft[inside]) / 2)
