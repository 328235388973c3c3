"""What a report says in sentences."""

from dataclasses import replace

import pytest

from hf_zip.evaluate import EvaluatedTask, Evaluation, Row
from hf_zip.training.trained import Trained
from hf_zip.wording import limits, trained
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


@pytest.mark.parametrize(
    ("best", "shown"),
    [
        (
            20,
            "those of step 20 taken, 0 s; loss on held-out inputs 3 after step 10, 2 after "
            "step 20, 4 after step 40",
        ),
        (40, "40 steps, 0 s; loss on held-out inputs 3 after step 10, 4 after step 40"),
    ],
)
def test_the_loss_of_the_step_that_was_taken_is_said(best, shown):
    held_out = ((10.0, 3.0), (20.0, 2.0), (30.0, 2.5), (40.0, 4.0))
    found = Trained("rooting", 40, held_out=held_out, best_step=best)
    assert trained(found).endswith(shown)
    one = replace(found, held_out=held_out[-1:], best_step=40)
    assert trained(one).endswith("held-out inputs 4 after step 40")
    assert trained(replace(found, held_out=(), best_step=40)) == "rooting, 40 steps, 0 s"
