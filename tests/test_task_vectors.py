"""Methods for fine-tunes of one base against what their papers define, number by number."""

import pytest
import torch
from peft.utils import merge_utils

from hf_zip.errors import HfZipError
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


# TIES.


def ties_by_hand(base, states, density, scaling=1.0, weights=None):
    """TIES as the paper tells it, number by number."""
    rows = vectors(base, states)
    weights = weights or [1.0] * len(rows)
    kept = round(density * rows.shape[1])
    trimmed = []
    for row in rows.tolist():
        order = sorted(range(len(row)), key=lambda i: -abs(row[i]))[:kept]
        trimmed.append([value if i in order else 0.0 for i, value in enumerate(row)])
    merged = []
    for own in zip(*trimmed, strict=True):
        mass = sum(w * x for w, x in zip(weights, own, strict=True))
        agreeing = [(w, x) for w, x in zip(weights, own, strict=True) if x * mass > 0]
        total = sum(w for w, _ in agreeing)
        merged.append(sum(w * x for w, x in agreeing) / total if agreeing else 0.0)
    return flat(base).double() + scaling * torch.tensor(merged, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_ties_is_what_the_paper_tells(count, density):
    base, states = tensors(count)
    found = combined("ties", base, states, density=density, scaling=0.8)
    expected = ties_by_hand(base, states, density, 0.8)
    torch.testing.assert_close(flat(found).double(), expected, rtol=0, atol=1e-6)


def test_ties_trims_every_parameter_by_itself_where_asked():
    base, states = tensors()
    found = combined("ties", base, states, trim="tensor", density=0.4)
    for name in base:
        own = [{name: state[name]} for state in states]
        expected = ties_by_hand({name: base[name]}, own, 0.4)
        torch.testing.assert_close(found[name].flatten().double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(flat(found), flat(combined("ties", base, states, density=0.4)))


def test_ties_agrees_with_peft():
    base, states = tensors(3, seed=4, only=(8, 25))
    rows = [state["only"] - base["only"] for state in states]
    expected = base["only"] + merge_utils.ties(rows, torch.ones(3), 0.25)
    for trim in ("global", "tensor"):
        found = combined("ties", base, states, density=0.25, trim=trim)["only"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_ties_weighs_votes_and_means():
    base, states = tensors()
    weights = [1.0, 3.0, 0.5]
    models = [{"weight": weight} for weight in weights]
    found = combined("ties", base, states, models, density=0.6)
    expected = ties_by_hand(base, states, 0.6, weights=weights)
    torch.testing.assert_close(flat(found).double(), expected, rtol=0, atol=1e-6)


def test_ties_keeps_of_each_model_what_is_said_of_it():
    base, states = tensors(2)
    models = [{"density": 0.0}, {}]
    found = combined("ties", base, states, models, density=1.0)
    torch.testing.assert_close(flat(found), flat(states[1]))


def test_votes_that_cancel_leave_the_base():
    base = {"w": torch.tensor([1.0, 2.0, 3.0])}
    states = [{"w": base["w"] + torch.tensor(own)} for own in ([1.0, 1.0, 0.0], [-1.0, 2.0, 0.0])]
    found = combined("ties", base, states, density=1.0)
    assert found["w"].tolist() == [1.0, 3.5, 3.0]


@pytest.mark.parametrize("density", [1.5, -0.1])
def test_a_density_is_a_share(density):
    base, states = tensors(1)
    message = rf"density is {density}; it should be in \[0, 1\]"
    with pytest.raises(HfZipError, match=message):
        combined("ties", base, states, density=density)
    with pytest.raises(HfZipError, match=message):
        combined("ties", base, states, [{"density": density}])


def test_a_vote_is_not_negative():
    base, states = tensors(1)
    with pytest.raises(HfZipError, match=r"weight is -1.0; it should be in \[0, inf\]"):
        combined("ties", base, states, [{"weight": -1.0}])
