"""The ridge that rows not seen would choose."""

import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.refit.cross_validation import choose_penalty
from hf_zip.refit.ridge import regress
from hf_zip.statistics.covariance import Covariance

PENALTIES = [10.0**power for power in range(-6, 4)]


def moments(x, y):
    found = Covariance(x.shape[1] + y.shape[1])
    found.update(torch.cat([x, y], dim=1))
    return found


def problem(rows, noise, features=20, targets=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=draw).double() * torch.logspace(0, -1, features)
    weight = torch.randn(targets, features, generator=draw).double()
    return x, x @ weight.T + noise * torch.randn(rows, targets, generator=draw).double()


def test_the_score_is_that_of_the_rows_written_out():
    x, y = problem(30, noise=1.0)
    centred_x = x - x.mean(dim=0)
    scores = {}
    for penalty in PENALTIES:
        ridge = penalty * centred_x.square().sum(dim=0).mean()
        hat = centred_x @ torch.linalg.inv(centred_x.T @ centred_x + ridge * torch.eye(20))
        hat = hat @ centred_x.T + 1 / 30
        missed = (y - hat @ y).square().sum()
        scores[penalty] = float(missed / (1 - hat.trace() / 30) ** 2)
    assert choose_penalty(moments(x, y), 20, PENALTIES) == min(scores, key=scores.get)


def test_the_choice_is_near_the_best_for_rows_not_seen():
    x, y = problem(60 + 5000, noise=3.0)
    found = moments(x[:60], y[:60])

    def error(penalty):
        weight, bias = regress(found, 20, penalty)
        return float((x[60:] @ weight.T + bias - y[60:]).square().mean())

    chosen = choose_penalty(found, 20, PENALTIES)
    assert error(chosen) <= 1.02 * min(map(error, PENALTIES))
    assert min(error(min(PENALTIES)), error(max(PENALTIES))) > 1.1 * error(chosen)


def test_without_noise_the_weakest_is_taken():
    assert choose_penalty(moments(*problem(60, noise=0.0)), 20, PENALTIES) == min(PENALTIES)


def test_fewer_rows_than_features_take_no_weak_ridge():
    x, y = problem(12, noise=1.0)
    assert choose_penalty(moments(x, y), 20, PENALTIES) > 1e-3


def test_where_all_do_equally_well_the_strongest_is_taken():
    x, _ = problem(30, noise=1.0)
    found = moments(x, torch.zeros(30, 2).double())
    assert choose_penalty(found, 20, [0.1, 10.0, 1.0]) == 10.0


@pytest.mark.parametrize("penalties", [[], [0.1, 0.0], [-1.0]])
def test_what_there_is_to_choose_from_is_checked(penalties):
    x, y = problem(30, noise=1.0)
    with pytest.raises(
        HfZipError, match=r"the ridge is to be chosen from .*; give at least one, a"
    ):
        choose_penalty(moments(x, y), 20, penalties)
