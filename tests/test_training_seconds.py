"""Trainings with a budget in seconds, by a clock that goes on when it is looked at."""

import json

import pytest
import torch
from typer.testing import CliRunner

import hf_zip
from hf_zip.card import render_card
from hf_zip.cli import app
from hf_zip.errors import HfZipError
from hf_zip.training.options import TrainingOptions
from hf_zip.training.train import train
from hf_zip.wording import trained as wording
from tests.launch import run_in
from tests.models import processor, random_inputs, rows, vit
from tests.siblings import family
from tests.texts import bert
from tests.training import Ticking, linear, pairs, squared_error

SETTING = {"batch_size": 8, "learning_rate": 0.05, "schedule": "cosine", "warmup": 0.2}
LONG = {"steps": 1000, **SETTING}
HELD = {"held_out": 0.2, "every": 4}


def run(learner, inputs=None, **options):
    inputs = pairs() if inputs is None else inputs
    return train(learner, inputs, TrainingOptions(**options), progress=False)


def assert_close(one, two):
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, two.state_dict()[name], rtol=0, atol=1e-12), name


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_schedule_follows_the_time(monkeypatch, schedule):
    Ticking(monkeypatch, 1.0)  # a look, and so a step, takes a second
    timed, counted = linear(), linear()
    found = run(timed, **{**LONG, "schedule": schedule}, seconds=10.0)
    expected = run(counted, **{**SETTING, "schedule": schedule}, steps=10)
    assert_close(timed, counted)
    assert (found.steps, found.ended, expected.ended) == (10, "seconds", "steps")
    assert dict(found.losses) == pytest.approx(dict(expected.losses))
    assert "10 steps until its seconds were spent, " in wording(found)


def test_the_schedule_follows_the_steps_where_they_are_further(monkeypatch):
    Ticking(monkeypatch, 0.0)
    timed, counted = linear(), linear()
    found = run(timed, **SETTING, **HELD, steps=30, seconds=10.0)
    expected = run(counted, **SETTING, **HELD, steps=30)
    assert_close(timed, counted)
    assert (found.steps, found.ended) == (30, "steps")
    assert (found.losses, found.held_out) == (expected.losses, expected.held_out)
    assert found.best_step == expected.best_step


def test_what_the_last_step_learnt_is_looked_at(monkeypatch):
    Ticking(monkeypatch, 1.0)
    learner = linear()
    found = run(learner, **LONG, seconds=5.0, held_out=0.2, every=100)
    assert [step for step, _ in found.held_out] == [found.steps] == [5]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:8].tolist()
    held = [pairs()[i] for i in order]
    batch = {key: torch.stack([row[key] for row in held]) for key in "xy"}
    loss = squared_error(learner.module, batch).mean().item()
    assert found.held_out[0][1] == pytest.approx(loss)


def test_the_loss_curve_has_as_many_points_as_else(monkeypatch):
    Ticking(monkeypatch, 1.0)
    found = run(linear(), **LONG, seconds=300.0)
    assert len(found.losses) == 100
    assert found.losses[-1][0] == 300


def test_a_training_may_end_before_for_lack_of_gains(monkeypatch):
    Ticking(monkeypatch, 1.0)
    options = {"batch_size": 5, "learning_rate": 0.5, "held_out": 0.5, "every": 5, "patience": 2}
    found = run(linear(), pairs(10), steps=500, seconds=1000.0, **options)
    assert found.steps == found.best_step + 10 < 500
    assert found.ended == "patience"
    assert "steps until held-out inputs gained nothing more, those of step" in wording(found)


def test_a_training_that_is_resumed_has_the_seconds_that_were_left(monkeypatch, tmp_path):
    class KilledError(Exception):
        pass

    def killed(module, batch):
        nonlocal left
        left -= 1
        if not left:
            raise KilledError
        return squared_error(module, batch)

    options = {**LONG, **HELD, "seconds": 20.0}
    Ticking(monkeypatch, 1.0)
    whole, again = linear(), linear()
    expected = run(whole, **options)
    assert expected.steps == 17  # a checkpoint, after every fourth step, looks at the clock too
    left = 9  # one forward for every step, one for each look at held-out inputs
    with pytest.raises(KilledError):
        run(linear(killed), **options, checkpoints=str(tmp_path))
    found = run(again, **options, checkpoints=str(tmp_path))
    assert_close(whole, again)
    assert (found.steps, found.ended) == (expected.steps, "seconds")
    assert found.held_out == expected.held_out
    left = 1
    ended = run(linear(killed), **options, checkpoints=str(tmp_path))  # is not run again
    assert (ended.steps, ended.ended, ended.losses) == (17, "seconds", found.losses)
    with pytest.raises(HfZipError, match="of another training: seconds differ"):
        run(linear(), **{**options, "seconds": 30.0}, checkpoints=str(tmp_path))


def test_no_seconds_change_nothing():
    learner = linear()
    found = run(learner, steps=5, seconds=0.0)
    assert (found.steps, found.ended) == (0, "seconds")
    assert_close(learner, linear())


def test_the_bar_counts_seconds(monkeypatch, capsys):
    Ticking(monkeypatch, 1.0)
    train(linear(), pairs(), TrainingOptions(**LONG, seconds=3.0), description="maps")
    shown = capsys.readouterr().err
    assert "| 0/3 s [" in shown
    assert "/1000" not in shown


def test_seconds_out_of_range_are_refused():
    with pytest.raises(HfZipError, match=r"seconds is -1.0; it should be in \[0, inf\]"):
        TrainingOptions(seconds=-1.0)


SHORT = {"seconds": 1e-6, "batch_size": 8, "held_out": 0.0}


@pytest.mark.parametrize(
    ("method", "more", "names"),
    [
        ("rooting", {"second_stage": SHORT}, ["rooting of model 1", "second stage"]),
        ("distill", {}, ["distillation"]),
        ("fs_merge", {}, ["maps"]),
        ("adamerging", {}, ["factors"]),
        ("wemoe", {}, ["routers"]),
    ],
)
def test_every_method_that_trains_can_be_told_for_how_long(method, more, names):
    apart = method not in ("adamerging", "wemoe")
    base, models = (None, [vit(2, 1), vit(3, 2)]) if apart else family(2, amount=0.2)
    inputs = rows(random_inputs(models[0] if apart else bert(), 16, seed=5))
    result = hf_zip.merge(
        models,
        method=method,
        tasks=["one", "two"],
        base_model=base,
        calibration=inputs,
        parameters={"training": SHORT, **more},
        progress=False,
    )
    trainings = result.report.trainings
    assert [own.name for own in trainings] == names
    assert {(own.steps, own.ended) for own in trainings} == {(1, "seconds")}
    assert f"{names[-1]}, 1 steps until its seconds were spent" in render_card(result.report)


def test_the_command_takes_seconds(tmp_path):
    for name, model in (("trees", vit(3, 1)), ("pets", vit(2, 2))):
        model.save_pretrained(tmp_path / name)
        processor().save_pretrained(tmp_path / name)
    arguments = ["root", tmp_path / "trees", "--root", tmp_path / "pets"]
    arguments += ["--data", "generated:noise", "--samples", 8, "--out", tmp_path / "out"]
    arguments += ["--set", "training.seconds=0.000001", "--set", "training.batch_size=4"]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "rooting, 1 steps until its seconds were spent" in result.output
    report = json.loads((tmp_path / "out" / "hf_zip_rooting.json").read_text())
    assert (report["trained"]["steps"], report["trained"]["ended"]) == (1, "seconds")
    assert report["parameters"]["training"]["seconds"] == 1e-6


@pytest.mark.slow
def test_all_processes_stop_when_the_first_says_so(tmp_path):
    script = f"""
from itertools import count
import torch
from hf_zip.collect import make_accelerator
from hf_zip.training import clock
from hf_zip.training.options import TrainingOptions
from hf_zip.training.train import train
from tests.training import linear, pairs
accelerator = make_accelerator()
clock.perf_counter = count(0, 1 + accelerator.process_index).__next__  # the second one is slow
learner = linear()
trained = train(learner, pairs(), TrainingOptions(**{ {**LONG, "seconds": 10.0} }), progress=False)
own = torch.cat([x.flatten() for x in learner.state_dict().values()])
found = {{"steps": trained.steps, "ended": trained.ended, "own": accelerator.gather(own[None])}}
"""
    found = run_in(2, script, tmp_path)
    assert (found["steps"], found["ended"]) == (10, "seconds")
    assert torch.equal(*found["own"])
    counted = linear()
    run(counted, **SETTING, steps=10)
    own = torch.cat([x.flatten() for x in counted.state_dict().values()])
    assert torch.allclose(found["own"][0], own, rtol=0, atol=1e-6)
