import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

from hf_zip.candidates import Candidate, ensemble, merged, one_trunks, parent
from hf_zip.cost import macs, parameters
from hf_zip.errors import HfZipError
from hf_zip.evaluate import EvaluatedTask, Evaluation, evaluate
from hf_zip.sources import Source
from hf_zip.tasks import Task, resolve_tasks
from tests.launch import END, torchrun
from tests.models import images, randomise, rows, vit

A = Task("a", ("cat", "dog"), 0, (0,), ((0, 1),))
B = Task("b", ("red", "green", "blue"), 2, (1,), ((0, 1, 2),))

DESCRIPTION = {"data": "org/pets", "split": "test"}


class Described(list):
    description = DESCRIPTION


def answers(name="stub", kind="merge"):
    """A candidate that answers with its input, so that a test can write the logits down."""
    return Candidate(name, kind, (), lambda batch: side_by_side(batch["pixel_values"]))


def side_by_side(logits):
    """Answers to the tasks whose columns there are."""
    return {task.name: logits[:, task.start : task.stop] for task in (A, B)[: logits.shape[1] // 2]}


def samples(*pairs):
    return [{"pixel_values": torch.tensor(logits), "labels": label} for logits, label in pairs]


def run(candidates, tasks, data, batch_size=2, **options):
    return evaluate(candidates, tasks, data, batch_size, progress=False, **options)


def sources(*models):
    return [Source(f"runs/{i}", model, f"task {i}", f"model {i}") for i, model in enumerate(models)]


DATA_A = samples(
    ([5.0, 1.0, 0.0, 0.0, 0.0], 0),  # right in the task and jointly
    ([1.0, 2.0, 9.0, 0.0, 0.0], 1),  # right in the task, taken for the other jointly
    ([3.0, 2.0, 0.0, 0.0, 0.0], 1),  # wrong
    ([0.0, 7.0, 0.0, 6.0, 0.0], 1),  # right in the task and jointly
)
DATA_B = samples(([0.0, 0.0, 1.0, 3.0, 2.0], 1))  # right in the task and jointly


def test_accuracies_by_hand():
    (row,) = run([answers()], [A, B], {"a": DATA_A, "b": DATA_B}).rows
    assert row.per_task == {"a": 3 / 4, "b": 1.0}
    assert row.mean == 7 / 8
    assert row.joint == 3 / 5


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_do_not_change_the_counts(batch_size):
    data = {"a": DATA_A, "b": DATA_B}
    assert run([answers()], [A, B], data, batch_size) == run([answers()], [A, B], data)


def test_a_task_that_cannot_be_answered_has_no_accuracy():
    half = samples(([5.0, 1.0], 0))
    other = samples(([5.0, 1.0], 2))
    (row,) = run([answers()], [A, B], {"a": half, "b": other}).rows
    assert (row.per_task, row.mean, row.joint) == ({"a": 1.0, "b": None}, None, None)


def test_a_task_without_data_is_left_out():
    evaluation = run([answers()], [A, B], {"b": DATA_B})
    assert [task.name for task in evaluation.tasks] == ["b"]
    assert evaluation.rows[0].per_task == {"b": 1.0}
    assert evaluation.rows[0].joint == 1.0


def test_data_describe_themselves_and_gaps_are_on_record():
    skipped = {"one trunk": "there is no calibration data"}
    evaluation = run([answers()], [A, B], {"a": Described(DATA_A)}, skipped=skipped)
    assert evaluation.tasks == (EvaluatedTask("a", 4, DESCRIPTION),)
    assert evaluation.skipped == skipped
    assert run([answers()], [A, B], {"b": DATA_B}).tasks[0].data == {}


def test_evaluation_goes_through_json():
    candidates = [answers("m"), answers("p", "parent")]
    evaluation = run(candidates, [A, B], {"a": Described(DATA_A)}, skipped={"x": "why"})
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation
    assert [row.name for row in evaluation.of_kind("parent")] == ["p"]


def test_a_parent_answers_its_task_in_the_order_of_its_labels():
    first, second = vit(names=["cat", "dog"]), vit(names=["blue", "red", "green"], seed=1)
    pair = sources(first, second)
    batch = images(first)
    shuffled = Task("b", ("red", "green", "blue"), 2, (1,), ((1, 2, 0),))
    with torch.no_grad():
        found = parent(pair, 1, [A, shuffled]).answers(batch)
        own = second(**batch).logits
    assert list(found) == ["b"]
    torch.testing.assert_close(found["b"], own[:, [1, 2, 0]], rtol=0, atol=0)


def test_the_ensemble_of_one_parent_is_the_parent():
    alone = sources(vit())
    tasks = resolve_tasks(alone)
    batch = images(alone[0].model)
    with torch.no_grad():
        expected = parent(alone, 0, tasks).answers(batch)
        torch.testing.assert_close(ensemble(alone, tasks).answers(batch), expected, rtol=0, atol=0)


def test_members_of_one_task_answer_by_the_mean_of_their_logits():
    first, second = vit(names=["cat", "dog"]), vit(names=["dog", "cat"], seed=1)
    pair = [Source("a", first, "pets"), Source("b", second, "pets")]
    tasks = resolve_tasks(pair)
    batch = images(first)
    with torch.no_grad():
        found = ensemble(pair, tasks).answers(batch)["pets"]
        logits = [first(**batch).logits, second(**batch).logits[:, [1, 0]]]
    torch.testing.assert_close(found, (logits[0] + logits[1]) / 2)
    by_probability = sum(each.log_softmax(dim=1) for each in logits)
    assert torch.equal(found.argmax(dim=1), by_probability.argmax(dim=1))


def test_a_merged_model_in_half_precision_takes_float_inputs():
    model = vit(labels=5).to(torch.bfloat16)
    candidate = merged(model, [A, B], "half")
    with torch.no_grad():
        found = candidate.answers({"pixel_values": torch.randn(2, 3, 8, 8)})
    assert candidate.kind == "merge"
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        "a": ((2, 2), torch.float32),
        "b": ((2, 3), torch.float32),
    }


def trunk_features(model, batch):
    with torch.no_grad():
        return model.vit(**batch).last_hidden_state[:, 0].double().numpy()


def test_one_trunk_is_the_ridge_regression_of_the_ensembles_logits():
    pair = sources(vit(labels=3), vit(labels=2, seed=1))
    tasks = resolve_tasks(pair)
    batch, unseen = images(pair[0].model, 50), images(pair[0].model, 7, seed=9)
    control = one_trunks(pair, tasks, rows(batch), 8, progress=False)[1]
    with torch.no_grad():
        targets = torch.cat([s.model(**batch).logits for s in pair], dim=1).double().numpy()
        answers = control.answers(unseen)
        found = torch.cat(list(answers.values()), dim=1).double().numpy()
    assert list(answers) == ["task 0", "task 1"]
    x = trunk_features(pair[1].model, batch)
    centred = x - x.mean(axis=0)
    gram = centred.T @ centred
    weight = np.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * np.eye(12), centred.T @ targets)
    expected = (trunk_features(pair[1].model, unseen) - x.mean(axis=0)) @ weight
    np.testing.assert_allclose(found, expected + targets.mean(axis=0), rtol=0, atol=2e-5)
    assert (control.name, control.kind) == ("one trunk (model 1)", "control")
    trunk = sum(p.numel() for p in pair[1].model.vit.parameters())
    assert parameters(control.modules) == trunk + 5 * 13


def test_one_trunk_reads_the_first_of_several_heads():
    config = DeiTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        id2label={0: "x", 1: "y"},
    )
    model = randomise(DeiTForImageClassificationWithTeacher(config).eval())
    alone = sources(model)
    data = rows(images(model, 20))
    control = one_trunks(alone, resolve_tasks(alone), data, 8, progress=False)[0]
    seen = []
    handle = model.cls_classifier.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        found = control.answers(images(model, 4))
        handle.remove()
        torch.testing.assert_close(found["task 0"], control.modules[1](seen[0]))


# A ViT of 4 patches of 3 * 4 * 4 values and a class token, 12 wide, 2 blocks with MLPs of 20.
PATCHES = 4 * (3 * 4 * 4) * 12
PROJECTIONS = 4 * 5 * 12 * 12
SCORES_AND_VALUES = 2 * 5 * 5 * 12
MLP = 2 * 5 * 12 * 20
HEAD = 12 * 3
BY_HAND = PATCHES + 2 * (PROJECTIONS + SCORES_AND_VALUES + MLP) + HEAD


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_multiply_accumulates_by_hand(attention):
    model = vit(labels=3)
    model.set_attn_implementation(attention)
    assert macs(lambda batch: model(**batch), images(model, 1)) == BY_HAND


def test_costs_by_hand():
    pair = sources(vit(labels=3), vit(labels=3, seed=1, names=["x", "y", "z"]))
    tasks = resolve_tasks(pair)
    data = {"task 0": [{**row, "labels": 0} for row in rows(images(pair[0].model, 3))]}
    one, both = run([parent(pair, 0, tasks), ensemble(pair, tasks)], tasks, data).rows
    block = 4 * (12 * 12 + 12) + (12 * 20 + 20) + (20 * 12 + 12) + 4 * 12
    embeddings = 12 + 5 * 12 + (48 * 12 + 12)
    single = embeddings + 2 * block + 2 * 12 + (12 * 3 + 3)
    assert (one.parameters, both.parameters) == (single, 2 * single)
    assert (one.macs, both.macs) == (BY_HAND, 2 * BY_HAND)


def test_shared_parameters_count_once():
    layer = nn.Linear(2, 3)
    assert parameters([nn.Sequential(layer), layer]) == 9
    assert parameters([]) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "there are no data to evaluate"),
        ({"c": DATA_A}, "unknown task in the evaluation data 'c'"),
        ({"a": []}, "the evaluation data of task 'a' has no rows"),
        ({"a": iter(DATA_A)}, "the evaluation data of task 'a' has no rows"),
        ({"a": samples(([0.0] * 5, 2))}, "has label 2, but its labels are numbered from 0 to 1"),
        ({"a": samples(([0.0] * 5, -1))}, "has label -1, but its labels are numbered from 0 to 1"),
        ({"a": samples(([torch.nan] * 5, 0))}, "'stub' gave an answer that is not a number"),
        ({"a": samples(([torch.inf] * 5, 0))}, "'stub' gave an answer that is not a number"),
    ],
)
def test_data_that_cannot_be_evaluated_are_refused(data, message):
    with pytest.raises(HfZipError, match=re.escape(message)):
        run([answers()], [A, B], data)


def test_no_candidates_are_refused():
    with pytest.raises(HfZipError, match="there are no candidates to evaluate"):
        run([], [A, B], {"a": DATA_A})


def test_candidates_of_one_name_are_refused():
    with pytest.raises(HfZipError, match="two candidates are named 'stub'"):
        run([answers(), answers()], [A, B], {"a": DATA_A})


def test_candidates_that_cannot_be_built_are_refused():
    alone = sources(vit(labels=3))
    tasks = resolve_tasks(alone)
    headless = sources(vit(labels=3))
    headless[0].model.classifier = nn.Identity()
    with pytest.raises(HfZipError, match="there are no tasks"):
        parent(alone, 0, [])
    with pytest.raises(HfZipError, match="'m' has 3 labels, but the 2 tasks have 5 in all"):
        merged(alone[0].model, [A, B], "m")
    with pytest.raises(HfZipError, match="'runs/0' has no task head"):
        one_trunks(headless, tasks, rows(images(headless[0].model)), 4)
    with pytest.raises(HfZipError, match="there are no calibration inputs"):
        one_trunks(alone, tasks, [], 4)


SCRIPT = """
import json
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from hf_zip.candidates import Candidate, ensemble, one_trunks, parent
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.evaluate import evaluate
from hf_zip.sources import Source
from hf_zip.tasks import resolve_tasks
from tests.models import images, rows, vit

torch.set_num_threads(1)
accelerator = make_accelerator()
pair = [Source("a", vit(labels=3), "a", "a"), Source("b", vit(labels=2, seed=1), "b", "b")]
tasks = resolve_tasks(pair)
control = one_trunks(pair, tasks, rows(images(pair[0].model, 37)), 4, accelerator, False)[1]
both = ensemble(pair, tasks)
batches = 0


def counted(batch):
    global batches
    batches += 1
    return both.answers(batch)


data = {
    name: [{**row, "labels": i % labels} for i, row in enumerate(rows(images(pair[0].model, n)))]
    for name, labels, n in (("a", 3, 21), ("b", 2, 3))
}
candidates = [parent(pair, 0, tasks), Candidate("all", "ensemble", both.modules, counted), control]
evaluation = evaluate(candidates, tasks, data, 4, accelerator, progress=False)
message = None
if accelerator.num_processes > 1:
    padded = Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=True))
    try:
        evaluate(candidates[:1], tasks, data, 4, padded, progress=False)
    except HfZipError as error:
        message = str(error)
print(
    json.dumps(
        {
            "processes": accelerator.num_processes,
            "batches": batches - 1,  # one more was for the multiply-accumulates
            "evaluation": evaluation.to_dict(),
            "head": control.modules[1].weight.tolist(),
            "message": message,
        }
    ),
    file=open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w"),
)
accelerator.end_training()
"""


def launch(folder, processes):
    folder.mkdir()
    script = folder / "measure.py"
    script.write_text(SCRIPT + END)
    torchrun(script, folder, processes=processes)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.mark.slow  # starts Python twice
def test_two_processes_measure_what_one_does(tmp_path):
    (alone,) = launch(tmp_path / "one", 1)
    two = launch(tmp_path / "two", 2)
    assert [report["processes"] for report in (alone, *two)] == [1, 2, 2]
    # 6 batches of task a, 1 batch of task b: one process has no share in b
    assert [report["batches"] for report in (alone, *two)] == [7, 4, 3]
    for report in two:
        assert report["evaluation"] == alone["evaluation"]
        np.testing.assert_allclose(report["head"], alone["head"], rtol=0, atol=1e-6)
        assert "even_batches=False" in report["message"]
    assert two[0]["head"] == two[1]["head"]
