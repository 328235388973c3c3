"""What a report says in sentences."""

from dataclasses import replace

import pytest

from hf_zip.evaluate import EvaluatedTask, Evaluation, Row
from hf_zip.wording import limits
from tests.test_report import REPORT


@pytest.mark.parametrize(
    ("mean", "joint", "better"),
    [
        (0.75, 0.25, "mean 75.0 beside 50.0, joint 25.0 beside 50.0"),
        (0.25, 0.75, "mean 25.0 beside 50.0, joint 75.0 beside 50.0"),
        (0.75, None, "mean 75.0 beside 50.0, joint - beside 50.0"),
        (0.5, 0.5, None),
        (None, None, None),
    ],
)
def test_what_does_better_than_the_merge_in_the_mean_or_jointly_is_said(mean, joint, better):
    rows = (
        Row("x", "control", {"a": mean}, mean, joint, 1, 1),
        Row("m", "merge", {"a": 0.5}, 0.5, 0.5, 1, 1),
    )
    report = replace(REPORT, evaluation=Evaluation(rows, (EvaluatedTask("a", 1),)))
    said = [limit for limit in limits(report) if "does better" in limit]
    assert said == ([f"x (control) does better than the merge: {better}."] if better else [])
