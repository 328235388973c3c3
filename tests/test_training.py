import json
import random

import numpy as np
import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.training.options import TrainingOptions
from hf_zip.training.train import own_random_numbers, train
from tests.launch import run_in
from tests.training import linear, pairs, squared_error

SETTING = {"steps": 30, "batch_size": 8, "learning_rate": 0.05, "held_out": 0.2, "every": 4}
SETTING |= {"schedule": "cosine", "warmup": 0.1, "anchor": 0.1}


class KilledError(Exception):
    pass


def killed_after(calls):
    """A loss whose process dies when it has been asked for so often."""
    count = 0

    def loss(module, batch):
        nonlocal count
        count += 1
        if count > calls:
            raise KilledError
        return squared_error(module, batch)

    return loss


def run(learner, inputs=None, **options):
    inputs = pairs() if inputs is None else inputs
    return train(learner, inputs, TrainingOptions(**options), progress=False)


def assert_equal(one, two):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_least_squares_is_found():
    learner, inputs = linear(), pairs()
    found = run(learner, inputs, epochs=400, batch_size=40, learning_rate=0.05, schedule="linear")
    assert found.steps == 400
    x, y = (torch.stack([row[key] for row in inputs]) for key in "xy")
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    best = torch.linalg.lstsq(x, y).solution
    assert torch.allclose(learner.module.weight, best[:-1].T, atol=1e-4)
    assert torch.allclose(learner.module.bias, best[-1], atol=1e-4)


def test_inputs_that_fill_no_batch_are_left_out_of_an_epoch():
    seen = []

    def loss(module, batch):
        seen.append(batch["x"])
        return squared_error(module, batch)

    run(linear(loss), epochs=2, batch_size=16)
    assert [len(x) for x in seen] == [16] * 4
    first, second = (torch.cat(seen[i : i + 2]) for i in (0, 2))
    assert len(first.unique(dim=0)) == len(second.unique(dim=0)) == 32
    assert not torch.equal(first, second)


@pytest.mark.parametrize("calls", [3, 13, 27])
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, calls):
    whole = linear()
    expected = run(whole, **SETTING)
    with pytest.raises(KilledError):
        run(linear(killed_after(calls)), **SETTING, checkpoints=str(tmp_path))
    (tmp_path / "checkpoint-99").mkdir()  # as if it had died while writing
    again = linear()
    found = run(again, **SETTING, checkpoints=str(tmp_path))
    assert_equal(whole, again)
    assert found.losses == expected.losses
    assert found.held_out == expected.held_out
    assert found.best_step == expected.best_step


def test_a_training_that_ended_is_not_run_again(tmp_path):
    first, again = linear(), linear(killed_after(0))
    expected = run(first, **SETTING, checkpoints=str(tmp_path))
    found = run(again, **SETTING, checkpoints=str(tmp_path))
    assert_equal(first, again)
    assert (found.steps, found.losses) == (30, expected.losses)


def test_forwards_that_a_step_is_divided_into_change_nothing():
    whole, divided = linear(), linear()
    run(whole, steps=10, batch_size=8)
    run(divided, steps=10, batch_size=8, accumulation=4)
    assert torch.allclose(whole.module.weight, divided.module.weight, rtol=0, atol=1e-12)


def test_two_processes_learn_what_one_does(tmp_path):
    script = f"""
from hf_zip.collect import make_accelerator
from hf_zip.training.options import TrainingOptions
from hf_zip.training.train import own_random_numbers, train
from tests.training import linear, pairs
accelerator = make_accelerator()
learner = linear()
options = TrainingOptions(**{ {**SETTING, "held_out": 0.07} })
trained = train(learner, pairs(43), options, progress=False)
found = {{"losses": dict(trained.losses), "held": dict(trained.held_out), "state": learner.state_dict()}}
"""
    one, two = (run_in(processes, script, tmp_path) for processes in (1, 2))
    assert len(one["losses"]) == 30
    for key in ("losses", "held"):
        assert two[key] == pytest.approx(one[key], rel=1e-6)
    for name, tensor in one["state"].items():
        assert torch.allclose(tensor, two["state"][name], rtol=0, atol=1e-10), name


def test_it_stops_where_held_out_inputs_gain_nothing_more_and_takes_the_best():
    learner, inputs = linear(), pairs(10)
    options = {"batch_size": 5, "learning_rate": 0.5, "held_out": 0.5, "every": 5, "patience": 2}
    found = run(learner, inputs, steps=500, **options)
    best, least = min(found.held_out, key=lambda look: look[1])
    assert found.best_step == best < found.steps == best + 10
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))[:5].tolist()
    held = [inputs[i] for i in order]
    batch = {key: torch.stack([row[key] for row in held]) for key in "xy"}
    loss = squared_error(learner.module, batch).mean().item()
    assert loss == pytest.approx(least, rel=1e-6)


def test_patience_that_was_spent_before_a_kill_is_not_given_again(tmp_path):
    options = {"batch_size": 5, "learning_rate": 0.5, "held_out": 0.5, "every": 5, "patience": 3}
    stopped = run(linear(), pairs(10), steps=500, **options)
    # One forward for every step, one for each look: two looks of the last three have gained nothing.
    calls = stopped.steps - 2 + stopped.steps // 5 - 1
    options["checkpoints"] = str(tmp_path)
    with pytest.raises(KilledError):
        run(linear(killed_after(calls)), pairs(10), steps=500, **options)
    assert run(linear(), pairs(10), steps=500, **options).steps == stopped.steps


def test_an_anchor_that_goes_all_the_way_back_leaves_parameters_where_they_began():
    learner, free = linear(), linear()
    run(learner, steps=3, learning_rate=0.1, anchor=10.0)
    run(free, steps=3, learning_rate=0.1, anchor=5.0)
    assert_equal(learner, linear())
    assert not torch.equal(free.module.weight, linear().module.weight)


def test_no_steps_change_nothing_and_look_at_nothing():
    learner = linear(killed_after(0))
    assert run(learner, steps=0).steps == 0
    assert_equal(learner, linear())


def test_random_numbers_elsewhere_go_on_as_if_nothing_had_been():
    def draw():
        return np.random.rand(), torch.rand(1).item(), random.random()  # noqa: NPY002

    def seed_all():
        for own in (random.seed, np.random.seed, torch.manual_seed):
            own(5)

    learner = linear()
    seed_all()
    expected = draw()
    seed_all()
    before = random.getstate()
    run(learner, steps=2)
    random.setstate(before)  # the checks of types in tests draw from these
    assert draw() == expected
    seed_all()
    with own_random_numbers():
        draw()
    assert draw() == expected


def test_lower_precision_is_that_of_the_forwards():
    seen = []

    def loss(module, batch):
        output = module(batch["x"].float())
        seen.append(output.dtype)
        return output.float().square().sum(dim=-1)

    learner = linear(loss).float()
    run(learner, steps=1, precision="bfloat16")
    assert seen == [torch.bfloat16]
    assert learner.module.weight.dtype == torch.float32


def test_the_losses_are_shown(capsys):
    options = TrainingOptions(steps=4, held_out=0.2, every=2)
    train(linear(), pairs(), options, description="maps")
    shown = capsys.readouterr().err
    assert "maps" in shown
    assert "loss=" in shown
    assert "held out=" in shown


def test_checkpoints_of_something_else_are_refused(tmp_path):
    run(linear(), **SETTING, checkpoints=str(tmp_path))
    for other in ({"learning_rate": 0.01}, {"steps": 40}):
        with pytest.raises(HfZipError, match=f"of another training: {next(iter(other))} differ"):
            run(linear(), **{**SETTING, **other}, checkpoints=str(tmp_path))
    with pytest.raises(HfZipError, match="of another training: inputs differ"):
        run(linear(), pairs(41), **SETTING, checkpoints=str(tmp_path))
    changed = linear()
    changed.module.weight.data += 1
    with pytest.raises(HfZipError, match="of another training: start differ"):
        run(changed, **SETTING, checkpoints=str(tmp_path))
    record = tmp_path / "hf_zip_training.json"
    assert json.loads(record.read_text())["learning_rate"] == 0.05


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(HfZipError, match="not a folder of checkpoints; give another"):
        run(linear(), **SETTING, checkpoints=str(tmp_path))


def test_what_was_learnt_elsewhere_is_not_put_into_a_learner():
    with pytest.raises(HfZipError, match="holds 1 tensors, but 2 others are trained here"):
        linear().load_state_dict({"weight": torch.zeros(3, 5)})


def test_a_loss_that_is_not_finite_ends_the_training():
    learner = linear(lambda module, batch: squared_error(module, batch) / 0)
    with pytest.raises(HfZipError, match="the loss is inf after 1 steps; lower the learning_rate"):
        run(learner, steps=3)


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_inputs_are_refused(count):
    with pytest.raises(HfZipError, match=r"no calibration inputs|cannot be divided among 1"):
        run(linear(), pairs(count), steps=3, accumulation=3)


def test_inputs_to_train_on_have_to_be_left():
    with pytest.raises(HfZipError, match="of 1 inputs 1 would be held out, so none is left"):
        run(linear(), pairs(1), steps=3, held_out=0.5)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(HfZipError, match="cannot report to nowhere: nowhere is not supported"):
        run(linear(), steps=3, report_to=("nowhere",))


def test_patience_without_held_out_inputs_is_refused():
    with pytest.raises(HfZipError, match="patience is 2, but no inputs are held out"):
        TrainingOptions(patience=2)


@pytest.mark.parametrize("trackers", [("tensorboard",), ("all",)])
def test_logs_that_would_be_removed_with_their_folder_are_refused(trackers, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with pytest.raises(
        HfZipError, match="TensorBoard's logs lie in the folder of checkpoints, and"
    ):
        TrainingOptions(report_to=trackers)
    assert TrainingOptions(report_to=trackers, checkpoints="run").report_to == trackers
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "logs")
    assert TrainingOptions(report_to=trackers).checkpoints is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1),
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulation", 0),
        ("learning_rate", -0.1),
        ("every", 0),
        ("anchor", -1.0),
        ("warmup", 1.5),
        ("held_out", 1.0),
    ],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(HfZipError, match=rf"{name} is {value}; it should be in \["):
        TrainingOptions(**{name: value})
