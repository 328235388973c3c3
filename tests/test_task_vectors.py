"""Methods for fine-tunes of one base against what their papers define, number by number."""

import torch

from tests.siblings import combined, flat, tensors


def vectors(base, states):
    """Task vectors, each as one row in float64."""
    return torch.stack([flat(state).double() - flat(base).double() for state in states])


# Task arithmetic.


def test_task_arithmetic_is_a_weighted_sum():
    base, states = tensors()
    models = [{"weight": weight} for weight in (1.0, 0.5, -2.0)]
    found = combined("task_arithmetic", base, states, models, scaling=0.7)
    weights = torch.tensor([[1.0], [0.5], [-2.0]], dtype=torch.float64)
    expected = flat(base).double() + 0.7 * (weights * vectors(base, states)).sum(dim=0)
    torch.testing.assert_close(flat(found).double(), expected, rtol=0, atol=1e-6)


def test_a_task_is_taken_away_by_a_negative_weight():
    base, (state, _) = tensors(2)
    found = combined("task_arithmetic", base, [state], [{"weight": -1.0}], scaling=1.0)
    torch.testing.assert_close(flat(found) + flat(state), 2 * flat(base))
