"""PLeaS as a whole: partial permutation, then a refit of every layer."""

import pytest
import torch

import hf_zip
from hf_zip.errors import HfZipError
from hf_zip.methods.pleas import PleasOptions, merged_heads
from tests.models import images, permuted, vit
from tests.test_zipfit import logits


def merge(models, tasks=None, samples=200, **parameters):
    return hf_zip.merge(
        models,
        method="pleas",
        tasks=tasks or [f"task {k}" for k in range(len(models))],
        parameters=parameters,
        calibration=images(models[0], samples, seed=9)["pixel_values"],
        dtype="float64",
        labels="apart",
        force=True,
        progress=False,
    )


def parents(count=2):
    return [vit(2 + k, seed=k).double() for k in range(count)]


def left(models, **parameters):
    """Share of the variance of all parents' logits that the merge leaves."""
    wanted = torch.cat([logits(model) for model in models], dim=1)
    found = logits(merge(models, samples=400, **parameters).model)
    return ((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()).item()


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (1, 1.0, (12, 20, 3)),
        (2, 1.0, (12, 20, 3)),
        (2, 1.333, (16, 27, 4)),  # of 20 units 13 are merged, 7 and 7 are kept
        (2, 2.0, (24, 40, 6)),
        (3, 1.0, (12, 20, 3)),
        (3, 1.667, (20, 34, 5)),
        (3, 3.0, (36, 60, 9)),
    ],
)
def test_the_merged_model_has_the_size_that_was_asked_for(count, size, expected):
    config = merge(parents(count), size=size).model.config
    found = (config.hidden_size, config.intermediate_size, config.num_attention_heads)
    assert found == expected


def test_more_room_holds_more_of_two_models():
    shares = [left(parents(), size=size) for size in (1.0, 1.333, 1.667, 2.0)]
    assert shares == sorted(shares, reverse=True)
    # With all features side by side only the joint normalisation stands between merge and ensemble.
    assert shares[-1] < 0.25 < shares[0]


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_copies_are_matched_back_at_both_ends(size):
    model = vit().double()
    models = [model, permuted(model, 1)]
    found = merge(models, ["same"] * 2, size=size, penalty=1e-10, head_penalty=1e-10).model
    error = (logits(model) - logits(found)).abs().max() / logits(model).abs().max()
    assert error <= 1e-6


def test_the_report_says_what_was_matched_and_explained():
    report = merge(parents()).report
    assert set(report.explained) == {
        f"layers.{n}.{p}" for n in range(2) for p in ("attention", "mlp")
    }
    assert 0 < report.matching["stream"] < 1
    assert report.recipe["parameters"] == {
        "penalty": 1e-3, "head_penalty": 1e-3, "memory": 4.0, "size": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "num_models", "num_heads", "expected"),
    [(1.0, 2, 12, 12), (2.0, 2, 12, 0), (1.25, 2, 12, 9), (1.083, 2, 12, 11), (2.0, 3, 4, 2),
     (1.0, 1, 3, 3)],
)  # fmt: skip
def test_merged_heads_by_hand(size, num_models, num_heads, expected):
    assert merged_heads(size, num_models, num_heads) == expected


@pytest.mark.parametrize("size", [0.5, 1.3, 2.1, float("nan")])
def test_an_impossible_size_is_refused_with_the_possible_ones(size):
    message = (
        rf"pleas's size is {size}, but .* 2 models of 3 heads make one of size "
        r"1, 1\.333, 1\.667, 2; give one of these"
    )
    with pytest.raises(HfZipError, match=message):
        merged_heads(size, 2, 3)


def test_an_impossible_size_of_a_merge_is_refused():
    with pytest.raises(HfZipError, match=r"1 models of 3 heads make one of size 1; give"):
        merge([vit()], size=2.0)


def test_a_negative_penalty_is_refused():
    with pytest.raises(HfZipError, match=r"the refit's penalty is -1\.0; it should be at least 0"):
        PleasOptions(penalty=-1.0)
