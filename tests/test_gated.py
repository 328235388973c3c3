"""Merges that keep what is least alike of every model, and choose or mix it by a gate."""

import threading

import pytest
import torch
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertForTokenClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import hf_zip
from hf_zip.combining.likeness import distance, nearest
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.merged import for_task
from hf_zip.modeling import HfZipRoutedModel
from hf_zip.modeling.modeling_hf_zip_routed import features_of
from hf_zip.tables import amount
from tests.models import images, processor, randomise, vit
from tests.siblings import family, finetuned, near
from tests.test_routed import OWN, answer, mixed
from tests.texts import bert, tokenizer

APART = {"shared": 0.0, "routing": "top"}


def merge(models, parameters=None, **more):
    more.setdefault("tasks", list("abc")[: len(models)])
    more.setdefault("processor", tokenizer())
    more.setdefault("own_calibration", OWN[: len(models)])
    return hf_zip.merge(models, method="gated", parameters=parameters, progress=False, **more)


@pytest.fixture(scope="module")
def models():
    """Three classifiers of 2, 3 and 4 labels, fine-tuned from one base."""
    return family(3, amount=0.1)[1]


@pytest.fixture(scope="module")
def apart(models):
    """Of every model everything is kept, and the likeliest is taken."""
    return merge(models, APART)


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_distance_is_one_minus_the_mean_cosine_of_models_of_one_length():
    own = torch.randn(4, 3, 5, generator=torch.manual_seed(1)).double()
    own = own / own.flatten(1).norm(dim=1)[:, None, None]
    cosines = [float((own[i] * own[j]).sum()) for i in range(4) for j in range(i)]
    assert distance(own) == pytest.approx(1 - sum(cosines) / len(cosines))
    assert distance(3 * own) == pytest.approx(distance(own))


def test_a_small_distance_is_not_lost_in_rounding():
    own = torch.ones(2, 100)
    own[1, 0] += 2**-20  # whose cosine differs from 1 by less than float64 tells
    assert distance(own) == pytest.approx(2**-40 / 100, rel=1e-3)
    assert distance(own[:1]) == 0
    assert (
        distance(torch.full((3, 7), 0.1, dtype=torch.float64)) == 0
    )  # whose mean rounds to another number
    assert distance(torch.zeros(3, 7)) == 0


def test_the_nearest_are_taken_until_they_are_a_share():
    distances, sizes = {"a": 0.3, "b": 0.0, "c": 0.1, "d": 0.1}, {"a": 4, "b": 2, "c": 3, "d": 1}
    found = [nearest(distances, sizes, share) for share in (0.0, 0.2, 0.21, 0.5, 0.51, 1.0)]
    assert [*map("".join, map(sorted, found))] == ["b", "b", "bc", "bc", "bcd", "abcd"]


def test_apart_a_known_task_has_its_model_and_the_size_is_that_of_all(models, apart):
    for task, model in zip("abc", models, strict=True):
        found = answer(apart.model, task=task)
        torch.testing.assert_close(found.logits, answer(model).logits)
        exported = apart.for_task(task)
        for name, tensor in model.bert.named_parameters():
            assert torch.equal(exported.bert.get_parameter(name), tensor)
    gate = numbers(apart.model.router)
    assert numbers(apart.model) == sum(map(numbers, models)) + gate


def test_of_one_source_its_tensors_are_not_copied(apart):
    kept = apart.model.parameters_for(torch.eye(3)[2])
    name = "bert.embeddings.word_embeddings.weight"
    own = dict(apart.model.separate.tensors())[name]
    assert kept[name].data_ptr() == own[1].data_ptr()
    assert not apart.model.parameters_for(torch.eye(3)[0])


def test_everything_shared_is_the_average(models):
    found = merge(models, {"shared": 1.0}).model
    average = hf_zip.merge(
        models, method="average", tasks=list("abc"), processor=tokenizer(), progress=False
    ).model
    assert not found.config.separate
    for name, tensor in average.named_parameters():
        torch.testing.assert_close(found.shared.get_parameter(name), tensor)


def test_the_most_alike_are_merged_into_one(models):
    found = merge(models, {"shared": 0.6}).model
    trunks = [model.bert.state_dict() for model in models]
    own = {name: torch.stack([trunk[name] for trunk in trunks]) for name in trunks[0]}
    separate = {name.removeprefix("bert.") for name in found.config.separate}
    shared = own.keys() - separate
    assert max(distance(own[name]) for name in shared) < min(distance(own[n]) for n in separate)
    share = sum(own[name][0].numel() for name in shared) / sum(own[n][0].numel() for n in own)
    assert 0.6 <= share < 1
    for name in shared:
        torch.testing.assert_close(found.shared.bert.get_parameter(name), own[name].mean(dim=0))
    for name, others in found.separate.tensors():
        assert torch.equal(others, own[name.removeprefix("bert.")][1:])
        assert torch.equal(found.shared.get_parameter(name), own[name.removeprefix("bert.")][0])


def test_what_is_the_same_in_all_models_is_kept_once(models):
    base = bert(seed=90, cls=BertForMaskedLM)
    same = [finetuned(base, seed, 2) for seed in (1, 2)]
    same[1].bert.load_state_dict(same[0].bert.state_dict())
    with torch.no_grad():
        same[1].bert.embeddings.word_embeddings.weight.add_(0.1)
    found = merge(same, {"shared": 0.0}).model
    assert found.config.separate == ["bert.embeddings.word_embeddings.weight"]


def test_the_gate_tells_whose_an_input_is_and_selects_its_head(models, apart):
    found = answer(apart.model)
    assert found.task_weights.tolist() == torch.eye(3).repeat(2, 1).tolist()
    bounds = [(0, 2), (2, 5), (5, 9)]
    for position, (model, (start, stop)) in enumerate(zip(models, bounds, strict=True)):
        rows = slice(position, None, 3)
        own, expected = found.logits[rows, start:stop], answer(model).logits[rows]
        torch.testing.assert_close(own.log_softmax(-1), expected.log_softmax(-1))
        inside = found.logits[rows].softmax(dim=-1)[:, start:stop].sum(dim=-1)
        chances = apart.model.scores(dict(mixed())).softmax(dim=-1)
        torch.testing.assert_close(inside, chances[rows, position])
    torch.testing.assert_close(found.logits.logsumexp(dim=-1), torch.zeros(6), rtol=0, atol=1e-5)


def test_soft_routing_mixes_what_is_not_shared(models):
    model = merge(models, {"shared": 0.6}).model
    shares = torch.tensor([0.5, 0.2, 0.3])
    mixed_ones = model.parameters_for(shares)
    for name, others in model.separate.tensors():
        first = model.shared.get_parameter(name)
        expected = 0.5 * first + 0.2 * others[0] + 0.3 * others[1]
        torch.testing.assert_close(mixed_ones[name], expected)
    assert mixed_ones.keys() == {*model.config.separate}
    batch = mixed()
    together = answer(model, batch)
    alone = answer(model, {name: x[1:2] for name, x in batch.items()})
    torch.testing.assert_close(together.logits[1:2], alone.logits)
    torch.testing.assert_close(
        together.task_weights, model.scores(dict(batch)).softmax(dim=-1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("after", [0, 1, "head"])
def test_the_gate_reads_the_mean_over_tokens_after_so_many_blocks(models, after):
    merged = merge(models, {**APART, "gate_after": after}).model
    batch = tokenizer()([OWN[0][0], OWN[1][0] + " the the"], return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = models[0].bert(**batch, output_hidden_states=True)
    if after == "head":
        expected = hidden.pooler_output
    else:
        mask = batch["attention_mask"].unsqueeze(-1).float()
        expected = (hidden.hidden_states[after] * mask).sum(dim=1) / mask.sum(dim=1)
    found = features_of(merged.shared, merged.config.reads, batch)
    torch.testing.assert_close(found, expected)
    assert answer(merged).task_weights[:3].argmax(dim=1).tolist() == [0, 1, 2]


def test_nothing_runs_after_what_the_gate_reads(models):
    model, seen = models[0], []
    first, second = model.bert.encoder.layer
    handles = [
        layer.register_forward_hook(lambda *_, at=at: seen.append(at))
        for at, layer in enumerate((first, second))
    ]
    features_of(model, "bert.encoder.layer.1", mixed())
    for handle in handles:
        handle.remove()
    assert seen == [0]
    trunk = bert(seed=1).bert
    trunk.pooler.unused = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"of BertModel never reached 'pooler\.unused'"):
        features_of(trunk, "pooler.unused", mixed())


def test_another_thread_runs_to_its_end_meanwhile(models):
    model, found = models[0], []

    def elsewhere(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: found.append(answer(model).logits))
            thread.start()
            thread.join()

    handle = model.bert.encoder.layer[0].register_forward_hook(elsewhere)
    features_of(model, "bert.encoder.layer.1", mixed())
    handle.remove()
    torch.testing.assert_close(found[0], answer(model).logits)


def test_of_two_models_of_one_task_the_likeliest_answers_by_its_own_head(models):
    base = bert(seed=90, cls=BertForMaskedLM)
    pair = [finetuned(base, seed, 2, 0.1) for seed in (1, 2)]
    for model in pair:
        model.config.id2label, model.config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    found = merge([*pair, models[2]], APART, tasks=["one", "one", "c"])
    answered = answer(found.model, task="one")
    assert answered.task_weights[:2].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert not answered.task_weights[:, 2].any()
    for position, model in enumerate(pair):
        torch.testing.assert_close(answered.logits[position], answer(model).logits[position])
    whole = answer(found.model)
    torch.testing.assert_close(whole.logits.logsumexp(-1), torch.zeros(6), rtol=0, atol=1e-5)
    with pytest.raises(HfZipError, match="task 'one' is answered by the likeliest of 2 models"):
        for_task(found.model, "one")
    soft = merge([*pair, models[2]], {"shared": 0.0}, tasks=["one", "one", "c"])
    assert answer(soft.model, task="one").task_weights.tolist() == [[0.5, 0.5, 0.0]] * 6
    head = (pair[0].classifier.weight + pair[1].classifier.weight) / 2
    torch.testing.assert_close(for_task(soft.model, "one").classifier.weight, head)


def test_a_source_of_several_tasks_is_as_likely_asked_for_each(models):
    two = hf_zip.merge(
        models[:2], method="average", tasks=["a", "b"], processor=tokenizer(), progress=False
    ).model
    found = merge([two, models[2]], APART, tasks=[None, "c"]).model
    assert [entry["members"] for entry in found.config.tasks] == [[0], [0], [1]]
    chances, scores = answer(found).logits.softmax(dim=-1), found.scores(dict(mixed()))
    expected = scores.softmax(dim=-1)[:, 0] / 2
    torch.testing.assert_close(chances[:, :2].sum(dim=-1), expected)
    torch.testing.assert_close(chances[:, 2:5].sum(dim=-1), expected)


def test_tokens_are_selected_by_their_text_and_values_as_they_are():
    base = bert(seed=90, cls=BertForMaskedLM)
    tags = [finetuned(base, seed, 2, cls=BertForTokenClassification) for seed in (7, 8)]
    found = merge(tags, APART).model
    (one,) = (tokenizer()([OWN[0][0]], return_tensors="pt") for _ in range(1))
    logits = answer(found, one).logits
    torch.testing.assert_close(logits.logsumexp(dim=-1), torch.zeros(logits.shape[:2]))
    many = [finetuned(base, seed, 2, problem_type="multi_label_classification") for seed in (1, 2)]
    found = merge(many, APART).model
    assert not found.config.selects
    torch.testing.assert_close(answer(found).logits[0, :2], answer(many[0]).logits[0])


def test_models_of_other_initialisations_take_turns(models):
    others = [randomise(bert(labels, seed), seed) for labels, seed in ((2, 5), (3, 6))]
    found = merge(others, APART).model
    for task, model in zip("ab", others, strict=True):
        torch.testing.assert_close(answer(found, task=task).logits, answer(model).logits)
    assert answer(found).task_weights[:2].tolist() == [[1, 0], [0, 1]]
    for parameters in ({"shared": 0.0}, {"shared": 0.1, "routing": "top"}):
        with pytest.raises(HfZipError, match="initialisation"):
            merge(others, parameters)


def test_without_a_table_the_gate_reads_what_goes_into_the_head():
    config = ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8, num_labels=2)
    nets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        nets.append(randomise(ResNetForImageClassification(config).eval(), seed))
        for name, buffer in nets[-1].named_buffers():
            if "running" in name:
                buffer.add_(torch.rand(buffer.shape, generator=torch.manual_seed(seed)))
    own = [torch.randn(16, 3, 16, 16, generator=torch.manual_seed(i)) + 2 * i for i in (0, 1)]
    given = {"processor": processor(), "own_calibration": own}
    found = merge(nets, {**APART, "gate_after": "head"}, **given).model
    assert "resnet.embedder.embedder.normalization.running_mean" in found.config.separate
    for task, net, values in zip("ab", nets, own, strict=True):
        expected = answer(net, {"pixel_values": values[:2]}).logits
        torch.testing.assert_close(
            answer(found, {"pixel_values": values[:2]}, task=task).logits, expected
        )
        exported = for_task(found, task)
        torch.testing.assert_close(answer(exported, {"pixel_values": values[:2]}).logits, expected)
    with pytest.raises(HfZipError, match="which blocks ResNetForImageClassification has is not kn"):
        merge(nets, APART, **given)


def test_saved_carded_described_and_loaded(tmp_path):
    base = vit(seed=90)
    models = [near(base, seed, seed + 1) for seed in (1, 2)]
    own = [images(base, 20, seed)["pixel_values"] + 3 * seed for seed in (0, 1)]
    result = merge(
        models,
        {"shared": 0.5},
        processor=processor(),
        own_calibration=own,
        dtype="bfloat16",
        out=tmp_path / "out",
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Parameters that are most alike in the sources are merged into one" in card
    assert "and these are mixed by that." in card
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 0 <= written - result.report.sizes["merge"] < 30_000  # the header
    assert result.report.sizes["merge"] < result.report.sizes["sources"]
    shown = describe([str(tmp_path / "out")])
    separate = sum(models[0].get_parameter(n).numel() for n in result.model.config.separate)
    assert "a merge by gated with weights for every task" in shown
    assert (
        f"of each of 2 models: {amount(separate)} parameters, chosen for an input by soft rou"
        in shown
    )
    assert "on 12 features of vit.layers.0" in shown
    loaded = AutoModel.from_pretrained(tmp_path / "out", dtype="auto")
    assert type(loaded) is HfZipRoutedModel
    batch = {"pixel_values": own[1][:3].bfloat16()}
    torch.testing.assert_close(answer(loaded, batch).logits, answer(result.model, batch).logits)
    top = merge(
        models,
        APART,
        processor=processor(),
        own_calibration=own,
        out=tmp_path / "top",
    )
    assert (
        "and these are those of the likeliest source." in (tmp_path / "top/README.md").read_text()
    )
    assert top.report.sizes["merge"] > result.report.sizes["merge"]


def test_what_does_not_fit_is_refused(models):
    for parameters, message in (
        ({"shared": 1.5}, "shared is 1.5"),
        ({"penalty": 0.0}, "penalty is 0"),
        ({"gate_after": -1}, "gate_after is -1"),
        ({"gate_after": 2}, "gate_after is 2, but BertModel has 2 blocks|has 2 blocks; give a num"),
    ):
        with pytest.raises(HfZipError, match=message):
            merge(models, parameters)
    with pytest.raises(HfZipError, match=r"models\.1 has no inputs of its own, by which the rou"):
        merge(models, own_calibration=[OWN[0], None, None], calibration=OWN[0])
