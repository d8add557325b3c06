"""The gap penalty: zero without a gap, and a gradient that only ever helps the worse group."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.training.fairness import NO_GROUP, gap_penalty, group_losses

NAMES = ("zh", "en", "mixed")
losses_and_groups = st.lists(
    st.tuples(st.floats(0, 10, width=32), st.integers(NO_GROUP, len(NAMES) - 1)), min_size=1, max_size=60
)


def tensors(pairs: list[tuple[float, int]]) -> tuple[Tensor, Tensor]:
    losses = torch.tensor([loss for loss, _ in pairs], dtype=torch.float64, requires_grad=True)
    return losses, torch.tensor([group for _, group in pairs])


@pytest.mark.parametrize("both_sides", [False, True])
@given(part=st.lists(st.floats(0, 10), min_size=1, max_size=10))
def test_equal_groups_cost_nothing(both_sides: bool, part: list[float]) -> None:
    losses = torch.tensor(part * 3, dtype=torch.float64, requires_grad=True)
    groups = torch.arange(3).repeat_interleave(len(part))
    penalty = gap_penalty(losses, groups, NAMES, both_sides=both_sides, rows_min=1)
    assert float(penalty.detach()) == pytest.approx(0, abs=1e-20)
    penalty.backward()
    assert losses.grad is not None
    assert losses.grad.abs().max() < 1e-10


@given(losses_and_groups)
def test_no_step_down_the_penalty_raises_a_loss_nor_leaves_the_worst_group_alone(
    pairs: list[tuple[float, int]],
) -> None:
    losses, groups = tensors(pairs)
    penalty = gap_penalty(losses, groups, NAMES, rows_min=1)
    assert float(penalty.detach()) >= 0
    penalty.backward()
    assert losses.grad is not None
    assert bool((losses.grad >= 0).all())
    means = group_losses(losses, groups, NAMES)
    if means and max(means.values()) > float(losses.detach().mean()) + 1e-6:
        worst = NAMES.index(max(means, key=lambda name: means[name]))
        assert bool((losses.grad[groups == worst] > 0).all())


@given(losses_and_groups, st.floats(0.1, 5), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter_and_strength_scales(
    pairs: list[tuple[float, int]], strength: float, random: object
) -> None:
    once = gap_penalty(*tensors(pairs), NAMES, rows_min=1)
    shuffled = sorted(pairs, key=lambda _: random.random())  # type: ignore[attr-defined]
    other = gap_penalty(*tensors(shuffled), NAMES, rows_min=1, strength=strength)
    assert float(other.detach()) == pytest.approx(strength * float(once.detach()), rel=1e-6, abs=1e-9)


def test_the_value_is_the_mean_squared_gap() -> None:
    losses, groups = tensors([(1, 0), (1, 0), (3, 1), (3, 1), (2, NO_GROUP)])
    assert float(gap_penalty(losses, groups, NAMES, rows_min=2).detach()) == pytest.approx((0 + 1) / 2)
    assert float(gap_penalty(losses, groups, NAMES, rows_min=2, both_sides=True).detach()) == pytest.approx(1)
    assert group_losses(losses, groups, NAMES) == {"zh": 1, "en": 3}


def test_training_with_it_narrows_the_gap() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    groups = (torch.arange(200) >= 160).long()  # a minority with a relation of its own
    y = torch.where(groups == 0, x[:, 0], x[:, 0] * 0.2 + x[:, 1])

    def gap(strength: float) -> float:
        weight = torch.zeros(4, requires_grad=True)
        optimiser = torch.optim.SGD([weight], lr=0.05)
        for _ in range(300):
            losses = (x @ weight - y).pow(2)
            optimiser.zero_grad()
            (losses.mean() + gap_penalty(losses, groups, NAMES[:2], strength=strength)).backward()
            optimiser.step()
        means = group_losses((x @ weight - y).pow(2), groups, NAMES[:2])
        return abs(means["zh"] - means["en"])

    assert gap(5.0) < 0.6 * gap(0.0)


def test_small_and_unnamed_groups_are_passed_over() -> None:
    losses, groups = tensors([(9, 0), (1, NO_GROUP), (1, NO_GROUP)])
    penalty = gap_penalty(losses, groups, NAMES, rows_min=2)
    penalty.backward()  # a constant would not have a gradient
    assert float(penalty.detach()) == 0
    empty = torch.zeros(0, requires_grad=True)
    assert float(gap_penalty(empty, torch.zeros(0, dtype=torch.int64), NAMES).detach()) == 0


def test_what_does_not_fit_is_refused() -> None:
    losses, groups = tensors([(1, 0), (2, 1)])
    with pytest.raises(ValueError, match="must be"):
        gap_penalty(losses, groups[:1], NAMES)
    with pytest.raises(ValueError, match="group ids"):
        gap_penalty(losses, groups, NAMES[:1])
    with pytest.raises(ValueError, match="negative"):
        gap_penalty(losses, groups, NAMES, strength=-1)
