import copy

import pytest
import torch
from transformers import BertForQuestionAnswering, ViTModel
from transformers.modeling_outputs import SequenceClassifierOutput

import hf_zip
from hf_zip.adapters import adapter_of, adapters
from hf_zip.card import render_card
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.folding.common import in_stream_of
from hf_zip.folding.correction import Correction
from hf_zip.folding.learning import Folding, Lesson, folding_loss
from hf_zip.folding.reading import Reading
from hf_zip.folding.supernet import SuperNet
from hf_zip.groups import merge_groups
from hf_zip.methods.fs_merge import FsMergeOptions
from hf_zip.report import Report
from hf_zip.rooting.streams import StreamMap, run_with_streams
from hf_zip.training.choices import answer_error
from tests.launch import run_in
from tests.models import permuted, random_inputs, randomise, rows, vit, with_parameters
from tests.texts import bert

SHORT = {"steps": 3, "batch_size": 8, "held_out": 0.2, "every": 2}
ONE_BLOCK = {"num_hidden_layers": 1}
UNTRAINED = {"steps": 0}


def merge(models, method="fs_merge", given=None, tasks=None, **parameters):
    given = {"calibration": rows(random_inputs(models[0], 40, seed=5))} if given is None else given
    return hf_zip.merge(
        models,
        method=method,
        tasks=tasks or [f"task {k}" for k in range(len(models))],
        parameters=parameters,
        progress=False,
        **given,
    )


def trunk_of(model):
    return {n: p for n, p in model.named_parameters() if not n.startswith("classifier")}


def assert_same_trunk(one, two, atol=0.0):
    for name, parameter in trunk_of(one).items():
        torch.testing.assert_close(parameter, two.get_parameter(name), rtol=0, atol=atol)


def dense(correction, model, size):
    """The matrix of a correction, a column for each feature."""
    return correction.times(model, torch.eye(size, dtype=torch.float64)).T


def randomised(correction):
    return randomise(correction.double(), 3)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_correction_is_a_matrix_inside_each_head_and_zero_between_them(rank, heads):
    correction = Correction(2, 18, heads, rank, torch.Generator().manual_seed(0)).double()
    x = torch.randn(5, 4, 18, dtype=torch.float64)
    assert not correction.times(1, x).any()
    correction = randomised(correction)
    first, second = (dense(correction, model, 18) for model in (0, 1))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(correction.times(1, x), x @ second.T)
    torch.testing.assert_close(correction.transposed_times(1, x), x @ second)
    blocks = second.unflatten(1, (heads, -1)).unflatten(0, (heads, -1)).transpose(1, 2)
    for row in range(heads):
        for column in range(heads):
            assert bool(blocks[row, column].any()) == (row == column)
    own = blocks[0, 0] - torch.diag(blocks[0, 0].diagonal())
    assert correction.is_whole == (rank == 0 or (heads == 3 and rank == 3))
    if not correction.is_whole:
        diagonal = correction.diagonal[1, 0, 0]
        own = blocks[0, 0] - torch.diag(diagonal)
        assert torch.linalg.matrix_rank(own) == rank


def test_a_product_with_more_numbers_than_a_matrix_is_one():
    make = torch.Generator()
    assert not Correction(2, 8, 1, 3, make).is_whole  # 8 + 2 * 3 * 8 = 56 numbers of 64
    assert Correction(2, 8, 1, 4, make).is_whole
    assert Correction(2, 8, 2, 2, make).is_whole


def net_of(models, shares, rank=2, heads=("classifier",)):
    states = [{n: p.detach().double() for n, p in m.named_parameters()} for m in models]
    groups = merge_groups(models[0], adapter_of(models[0]))
    net = SuperNet(states, groups, heads, shares, rank, torch.Generator().manual_seed(0))
    return net.double(), states


@pytest.mark.parametrize("make", [vit, bert])
def test_at_the_start_it_is_the_mean_with_the_shares(make):
    net, states = net_of([make(3, 1), make(3, 2)], (0.25, 0.75))
    found = net.folded()
    assert not any(name.startswith("classifier") for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.25 * states[0][name] + 0.75 * states[1][name])
    for model in (0, 1):
        head = net.head(model)
        assert {*head} == {"classifier.weight", "classifier.bias"}
        for name, tensor in head.items():
            torch.testing.assert_close(tensor, states[model][name])


def test_every_parameter_is_a_sum_of_models_between_maps():
    net, states = net_of([vit(3, 1), vit(3, 2)], (1.0, 0.0))
    randomised(net)
    found, layer = net.folded(), "vit.layers.1"

    def maps(kind, group, module, size):
        name = f"{kind} {group} {module}".replace(".", "/")
        own = [dense(net.maps[name], model, size) for model in (0, 1)]
        starts = (1, 0) if kind == "merge" else (1, 1)
        return [o + s * torch.eye(size, dtype=o.dtype) for o, s in zip(own, starts, strict=True)]

    for module, written, read in (
        ("mlp.fc1", ("layers.1.mlp", 20), ("stream", 12)),
        ("attention.q_proj", ("layers.1.query_key", 12), ("stream", 12)),
        ("attention.o_proj", ("stream", 12), ("layers.1.value", 12)),
    ):
        merging = maps("merge", written[0], f"{layer}.{module}", written[1])
        unmerging = maps("unmerge", read[0], f"{layer}.{module}", read[1])
        name, pairs = f"{layer}.{module}.weight", enumerate(zip(merging, unmerging, strict=True))
        wanted = sum(m @ states[k][name] @ u for k, (m, u) in pairs)
        torch.testing.assert_close(found[name], wanted)
        name = f"{layer}.{module}.bias"
        wanted = sum(m @ states[k][name] for k, m in enumerate(merging))
        torch.testing.assert_close(found[name], wanted)
    name = "vit.layernorm.weight"
    merging = maps("merge", "stream", "vit.layernorm", 12)
    torch.testing.assert_close(found[name], sum(m @ states[k][name] for k, m in enumerate(merging)))
    head = maps("unmerge", "stream", "classifier", 12)[1]
    own = net.head(1)
    weight = states[1]["classifier.weight"]
    torch.testing.assert_close(own["classifier.weight"], weight @ head)
    torch.testing.assert_close(own["classifier.bias"], states[1]["classifier.bias"])


def test_maps_reach_the_parts_of_a_parameter_that_carry_the_features_and_no_others():
    torch.manual_seed(0)
    models = [randomise(adapters()[name].example().eval()) for name in ("dinov2", "siglip_vision")]
    net, (state,) = net_of(models[:1], (1.0,))  # its head reads the stream twice, side by side
    randomised(net)
    own = dense(net.maps["unmerge stream classifier"], 0, 12) + torch.eye(12, dtype=torch.float64)
    wanted = state["classifier.weight"] @ torch.block_diag(own, own)
    torch.testing.assert_close(net.head(0)["classifier.weight"], wanted)

    net, (state,) = net_of(models[1:], (1.0,))
    correction = next(m for name, m in net.maps.items() if name.startswith("merge pool/value"))
    randomised(correction)  # of the last third of what makes queries, keys and values
    name = next(name for name in state if name.endswith("in_proj_bias"))
    size = len(state[name]) // 3
    wanted = state[name].clone()
    wanted[2 * size :] += dense(correction, 0, size) @ wanted[2 * size :]
    torch.testing.assert_close(net.folded()[name], wanted)


@pytest.mark.parametrize("make", [vit, bert])
def test_a_model_is_told_from_the_stream_of_another(make):
    model = make(3, 1).double()
    inputs = rows(random_inputs(model, 40, seed=5))
    other = permuted(model, 3)
    state = {name: p.detach() for name, p in other.named_parameters()}
    groups = merge_groups(model, adapter_of(model))
    accelerator = make_accelerator()
    found = in_stream_of(model, other, state, groups, inputs, 1e-12, 16, accelerator, False)
    batch = random_inputs(model, 8, seed=2)
    with torch.no_grad():
        wanted = run_with_streams(model, batch, (1, 2))[1]
        streams = run_with_streams(with_parameters(model, found), batch, (1, 2))[1]
    for one, two in zip(streams, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_the_loss_of_a_row_is_the_sum_of_what_each_model_teaches_on_its_own_part():
    models = [vit(2, 1), vit(3, 2)]
    net, _ = net_of([model.double() for model in models], (0.5, 0.5))
    batch = {str(k): random_inputs(models[0], 4, seed=k) for k in range(3)}
    lessons = [
        Lesson(model, place, "regression") for model, place in zip(models, (2, 0), strict=True)
    ]
    loss = folding_loss(lessons, (), 1.0, 3.0, 1.0)(Folding(net, None), batch)
    wanted, trunk = 0, net.folded()
    for position, (model, place) in enumerate(zip(models, (2, 0), strict=True)):
        folded = with_parameters(model, {**trunk, **net.head(position)})
        errors = [own(**batch[str(place)]).logits for own in (model, folded)]
        wanted = wanted + 3 * (errors[0] - errors[1]).square().mean(dim=-1)
    torch.testing.assert_close(loss, wanted)
    loss.sum().backward()
    assert all(parameter.grad is None for model in models for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_features_are_read_by_a_map_and_its_correction_and_padding_counts_nowhere():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    maps = [[StreamMap(draw(6, 6), draw(6), 2.0 + k)] for k in range(2)]
    reading = randomised(Reading(maps, 2, generator))
    own, wanted = draw(3, 4, 6), draw(3, 4, 6)
    known, (correction,) = maps[1][0], reading.maps
    told = own @ (known.weight + dense(correction, 1, 6)).T + known.bias
    errors = (told - wanted).square().sum(-1) / 3.0
    found = reading.errors(1, [own], [wanted], None)
    torch.testing.assert_close(found, errors.mean(dim=1))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    found = reading.errors(1, [own], [wanted], mask)
    torch.testing.assert_close(found, (errors * mask).sum(dim=1) / mask.sum(dim=1))


@pytest.mark.parametrize("make", [vit, bert])
def test_without_steps_it_is_what_it_begins_with(make):
    models = [make(2, 1), make(3, 2)]
    for first in (0, 1):
        found = merge(models, start=first, training=UNTRAINED).model
        assert_same_trunk(found, models[first])
    assert torch.equal(found.classifier.weight[2:], models[1].classifier.weight)
    inputs = random_inputs(models[0], 40, seed=5)
    with torch.no_grad():
        wanted = models[0](**inputs).logits
        error = (found(**inputs).logits[:, :2] - wanted).square().mean()
    assert error < wanted.var(dim=0).mean()  # no more than what the labels' means leave
    found = merge(models, start="average", training=UNTRAINED).model
    assert_same_trunk(found, merge(models, "average", given={"force": True}).model, 1e-6)
    found = merge(models, start="permute", training=UNTRAINED).model
    assert_same_trunk(found, merge(models, "permute").model, 1e-6)


def error_of(result, models, inputs):
    """How far a merge's logits are from those of each model, of its own labels."""
    start, found = 0, []
    with torch.no_grad():
        logits = result.model(**inputs).logits.log_softmax(-1)
        for model in models:
            wanted = model(**inputs).logits.log_softmax(-1)
            own = logits[:, start : start + wanted.shape[1]].log_softmax(-1)
            found.append((wanted.exp() * (wanted - own)).sum(-1).mean().item())
            start += wanted.shape[1]
    return found


@pytest.mark.parametrize(("make", "rank", "rate"), [(vit, 2, 0.02), (bert, 0, 0.002)])
def test_it_learns_what_every_model_does_and_leaves_them_alone(make, rank, rate):
    models = [make(2, 1), make(3, 2)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    inputs = random_inputs(models[0], 64, seed=5)
    given = {"calibration": rows(inputs)}
    start = merge(models, given=given, rank=rank, training=UNTRAINED)
    training = {"steps": 20, "batch_size": 32, "learning_rate": rate, "every": 20}
    end = merge(models, given=given, rank=rank, feature_weight=0.1, training=training)
    assert sum(error_of(end, models, inputs)) < 0.9 * sum(error_of(start, models, inputs))
    (trained,) = end.report.trainings
    assert (trained.name, trained.steps) == ("maps", 20)
    assert trained.losses[-1][1] < trained.losses[0][1]
    assert end.model.config.num_labels == 5
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_features_alone_or_answers_alone_or_some_blocks_can_be_learnt():
    models = [vit(2, 1, **ONE_BLOCK), vit(3, 2, **ONE_BLOCK)]
    found = [
        merge(models, training=SHORT, **parameters).report.trainings[0].losses[0][1]
        for parameters in ({}, {"feature_weight": 0}, {"answer_weight": 0}, {"blocks": [0]})
    ]
    assert found[0] == pytest.approx(found[1] + found[2], rel=1e-4)
    assert found[3] not in (pytest.approx(found[0]), pytest.approx(found[1]))


def test_each_model_teaches_on_inputs_of_its_own():
    models = [vit(2, 1, **ONE_BLOCK), vit(3, 2, **ONE_BLOCK)]
    own = [rows(random_inputs(models[0], 40, seed=seed)) for seed in (5, 6)]
    shared, given, some = (
        merge(models, given=given, start=0, training=SHORT)  # features are matched on all inputs
        for given in (
            {"calibration": own[0]},
            {"own_calibration": own},
            {"calibration": own[0], "own_calibration": [None, own[1]]},
        )
    )
    assert_same_trunk(given.model, some.model)
    losses = [result.report.trainings[0].losses[-1][1] for result in (shared, given)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_the_seed_decides_what_is_learnt():
    models = [bert(2, 1, **ONE_BLOCK), bert(3, 2, **ONE_BLOCK)]
    one, again = (merge(models, training=SHORT).model for _ in range(2))
    assert_same_trunk(one, again)
    given = {"calibration": rows(random_inputs(models[0], 40, seed=5)), "seed": 1}
    other = merge(models, given=given, training=SHORT).model
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_a_killed_training_goes_on_to_the_same_model(tmp_path):
    models = [vit(2, 1, **ONE_BLOCK), vit(3, 2, **ONE_BLOCK)]
    expected = merge(models, training=SHORT)
    training = {**SHORT, "checkpoints": str(tmp_path)}
    merge(models, training=training)
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()  # as if killed while writing it
    found = merge(models, training=training)
    assert_same_trunk(found.model, expected.model)
    assert torch.equal(found.model.classifier.weight, expected.model.classifier.weight)
    with pytest.raises(HfZipError, match="of another training: rank, start differ"):
        merge(models, rank=3, training=training)
    with pytest.raises(HfZipError, match=r"of another training: .*sources"):
        merge(models[::-1], training=training)


@pytest.mark.slow
def test_two_processes_learn_the_maps_that_one_does(tmp_path):
    script = """
from hf_zip.collect import make_accelerator
from tests.models import vit
from tests.test_fs_merge import SHORT, merge
accelerator = make_accelerator()
result = merge([vit(2, 1).double(), vit(3, 2).double()], training=SHORT, answer_weight=0.0)
found = {"losses": dict(result.report.trainings[0].losses), "state": result.model.state_dict()}
"""
    one, two = (run_in(processes, script, tmp_path) for processes in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    for name, tensor in one["state"].items():
        torch.testing.assert_close(tensor, two["state"][name], rtol=0, atol=1e-6)


def test_a_permuted_copy_is_matched_back():
    model = vit(3, 1)
    found = merge(
        [model, permuted(model, 3)],
        tasks=["same"] * 2,
        start="permute",
        penalty=1e-9,
        training=UNTRAINED,
    ).model
    inputs = random_inputs(model, 8, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(
            found(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-3
        )


def test_heads_may_be_fitted_anew_and_report_and_card_say_what_was_learnt():
    models = [vit(2, 1, **ONE_BLOCK), vit(3, 2, **ONE_BLOCK)]
    plain, fitted = (merge(models, training=SHORT, refit=refit) for refit in ("none", "head"))
    assert_same_trunk(plain.model, fitted.model)
    assert not torch.equal(plain.model.classifier.weight, fitted.model.classifier.weight)
    report = plain.report
    assert Report.from_json(report.to_json()) == report
    assert "Trained without labels: maps, 3 steps" in render_card(report)


def test_three_models_and_models_without_heads_are_merged():
    three = [vit(2, 1, **ONE_BLOCK), vit(3, 2, **ONE_BLOCK), vit(2, 3, **ONE_BLOCK)]
    assert merge(three, training=SHORT).model.config.num_labels == 7
    bare = [ViTModel(model.config).eval() for model in three[:2]]
    found = merge(bare, tasks=[None, None], training=SHORT)
    assert found.report.trainings[0].steps == 3
    with pytest.raises(HfZipError, match="head of model 0 is of kind features or stays apart"):
        merge(bare, tasks=[None, None], feature_weight=0.0)


def test_one_head_that_all_models_share_is_folded_too():
    models = [bert(2, seed, cls=BertForQuestionAnswering) for seed in (1, 2)]
    found = merge(models, tasks=["same"] * 2, training=SHORT)
    assert not torch.equal(found.model.qa_outputs.weight, models[0].qa_outputs.weight)


def test_regressions_are_apart_by_their_squared_errors():
    one, two = (
        SequenceClassifierOutput(logits=torch.tensor(x)) for x in ([[1.0, 2.0]], [[4.0, 2.0]])
    )
    assert answer_error(one, two, "regression", {}, 3.0).tolist() == [4.5]


def test_options_that_cannot_be_meant_are_refused():
    models = [vit(2, 1, **ONE_BLOCK), vit(3, 2, **ONE_BLOCK)]
    with pytest.raises(HfZipError, match="are both 0, so there is nothing to learn"):
        FsMergeOptions(feature_weight=0.0, answer_weight=0.0)
    with pytest.raises(HfZipError, match="rank is -1; it should be in"):
        FsMergeOptions(rank=-1)
    with pytest.raises(HfZipError, match="start is 2; it should be from 0 to 1"):
        merge(models, start=2)
    with pytest.raises(HfZipError, match="there is no block 3 to compare"):
        merge(models, blocks=[3])
    with pytest.raises(HfZipError, match=r"leave training\.checkpoint_activations out"):
        merge(models, training={"checkpoint_activations": True})
