import copy
import re
from dataclasses import replace

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, ViTModel

from hf_zip.adapters import adapter_for
from hf_zip.adapters import vit as vit_adapter
from hf_zip.adapters.bert import example as bert
from hf_zip.adapters.deit import example as deit
from hf_zip.errors import HfZipError
from hf_zip.methods import method_named
from hf_zip.preflight import Preflight, preflight, render
from hf_zip.similarity import (
    LINEAR_ROLES,
    ROLES,
    PairSimilarity,
    initialisation,
    similarities,
    task_vector_similarities,
)
from hf_zip.sources import Source, from_model
from hf_zip.tasks import resolve_tasks
from tests.models import permuted, processor, vit

TINY = {"vocab_size": 31, "n_layers": 2, "n_heads": 2, "hidden_dim": 28}


def finetuned(model, seed, amount=0.05, names=None):
    """A copy with every parameter moved a little, its labels renamed."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    moved.config.id2label = dict(enumerate(names or [f"moved {seed}.{i}" for i in range(3)]))
    return moved


def sources(*models, processors=None):
    processors = processors or [processor() for _ in models]
    return [
        from_model(model, name=f"model {i}", processor=p)
        for i, (model, p) in enumerate(zip(models, processors, strict=True))
    ]


def check(*models, processors=None, **options):
    found = sources(*models, processors=processors)
    return preflight(found, resolve_tasks(found, "apart"), **options)


def codes(found, level):
    return [finding.code for finding in found.findings if finding.level == level]


def message(found, code):
    (text,) = (finding.message for finding in found.findings if finding.code == code)
    return text


def test_models_that_fit():
    found = check(vit(), finetuned(vit(), 1))
    assert codes(found, "error") == codes(found, "warning") == []
    assert codes(found, "info") == ["task", "task"]
    assert found.initialisation == "shared"
    led = r"(\w+), (\w+) or (\w+), with .* \(--base\) and no data, or average without it: "
    named = re.match(led, found.suggestion)
    assert found.suggestion.endswith("`hf-zip methods` lists the other methods for such models")
    for needs in (method_named(name).requires for name in named.groups()):
        assert (needs.base, needs.shared_init, needs.calibration) == (True, True, False)


def test_different_initialisations():
    found = check(vit(hidden_size=48, seed=1), vit(hidden_size=48, seed=2))
    assert found.initialisation == "different"
    assert found.suggestion.startswith("zipfit: ")
    assert codes(found, "warning") == []


def test_a_permuted_copy_counts_as_different():
    model = vit(hidden_size=48, intermediate_size=96)
    assert check(model, permuted(model)).initialisation == "different"


def test_in_between_is_unclear():
    found = check(vit(), finetuned(vit(), 1, amount=1.0))
    assert found.initialisation == "unclear"
    assert found.suggestion.startswith("compare zipfit with average")


# Similarity.


def test_cosines_by_hand():
    first, second = vit(seed=1), vit(seed=2)
    (pair,) = similarities(sources(first, second), vit_adapter.ENTRY)
    assert tuple(pair.cosines) == ROLES
    keys = [
        torch.cat([layer.attention.k_proj.weight.flatten() for layer in model.vit.layers])
        for model in (first, second)
    ]
    assert pair.cosines["key"] == pytest.approx(torch.cosine_similarity(*keys, dim=0).item())
    parts = [
        torch.cat([p.flatten() for n, p in model.vit.embeddings.named_parameters() if p.dim() > 1])
        for model in (first, second)
    ]
    expected = torch.cosine_similarity(*parts, dim=0).item()
    assert pair.cosines["embeddings"] == pytest.approx(expected)


def test_a_model_is_like_itself_and_unlike_its_negative():
    model = vit()
    negative = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in negative.parameters():
            parameter.neg_()
    same, opposite, _ = similarities(sources(model, vit(), negative), vit_adapter.ENTRY)
    assert list(same.cosines.values()) == pytest.approx([1.0] * 7)
    assert list(opposite.cosines.values()) == pytest.approx([-1.0] * 7)


def test_dead_weights_are_like_nothing():
    dead = vit()
    torch.nn.init.zeros_(dead.vit.layers[0].mlp.fc1.weight)
    torch.nn.init.zeros_(dead.vit.layers[1].mlp.fc1.weight)
    (pair,) = similarities(sources(vit(), dead), vit_adapter.ENTRY)
    assert pair.cosines["mlp_in"] == 0.0


def test_a_role_that_the_family_lacks_is_left_out():
    adapter = replace(vit_adapter.ENTRY, query="", embeddings={})
    (pair,) = similarities(sources(vit(), vit()), adapter)
    assert tuple(pair.cosines) == LINEAR_ROLES[1:]


def pair_of(*cosines):
    return PairSimilarity("a", "b", dict(zip(ROLES, cosines, strict=False)))


@pytest.mark.parametrize(
    ("cosines", "verdict"),
    [
        ([0.5] * 6 + [0.0], "shared"),
        ([0.1] * 6 + [1.0], "different"),
        ([0.49] * 6, "unclear"),
        ([0.11] * 6, "unclear"),
        ([0.9] * 4 + [0.0] * 2, "shared"),
        ([0.9] * 2 + [0.0] * 4, "different"),
        ([-0.9] * 6, "different"),
        ([], "unclear"),
    ],
)
def test_the_median_over_the_linear_roles_decides(cosines, verdict):
    assert pair_of(*cosines).initialisation == verdict


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [([], "shared"), ([1, 1, 1], "shared"), ([1, 0, 1], "different"), ([1, 0.3, 1], "unclear"),
     ([0.3, 0], "different")],
)  # fmt: skip
def test_one_pair_decides_for_all(pairs, verdict):
    assert initialisation([pair_of(*[float(cosine)] * 6) for cosine in pairs]) == verdict


# What is told.


def test_one_model_is_a_warning():
    found = check(vit())
    assert codes(found, "warning") == ["single"]
    assert message(found, "single").startswith("'model 0' is the only model")
    assert (found.similarities, found.initialisation) == ((), "shared")


def test_the_same_weights_twice():
    found = check(vit(), vit(seed=1), vit())
    assert message(found, "identical") == "'model 0' and 'model 2' have the same weights"


def test_labels_that_say_nothing():
    found = check(vit(names=["LABEL_0", "LABEL_1"]), vit(seed=1))
    text = "task 'model 0' say nothing and become 'model 0/LABEL_0' and so on"
    assert text in message(found, "labels")


def test_values_without_effect_and_of_little_effect():
    found = check(vit(), vit(seed=1, hidden_dropout_prob=0.1, initializer_range=0.1))
    assert codes(found, "info") == ["task", "task", "config", "config"]
    found = check(vit(), vit(seed=1, layer_norm_eps=1e-6))
    text = "'model 0' and 'model 1' differ in layer_norm_eps, 1e-12 and 1e-06; the merged"
    assert message(found, "config").startswith(text)
    assert found.findings[0].level == "warning"


def test_bookkeeping_is_not_compared():
    other = vit(seed=1)
    other.config.finetuning_task, other.config.problem_type = "cars", "single_label_classification"
    assert "config" not in [finding.code for finding in check(vit(), other).findings]


def test_only_one_has_a_processor():
    found = check(vit(), vit(seed=1), processors=[None, processor()])
    assert "only 'model 1' has a processor" in message(found, "processor")
    found = check(vit(), vit(seed=1), processors=[processor(), None])
    assert "only 'model 0' has a processor" in message(found, "processor")
    found = check(vit(), vit(seed=1), processors=[None, None])
    assert "processor" not in [finding.code for finding in found.findings]


def test_values_of_steps_that_are_left_out_do_not_count():
    first = processor(do_resize=False, do_normalize=False, size={"height": 8, "width": 8})
    second = processor(do_resize=False, do_normalize=False, size={"height": 9, "width": 9},
                       image_mean=[0.1, 0.2, 0.3], do_center_crop=None)  # fmt: skip
    found = check(vit(), vit(seed=1), processors=[first, second])
    assert "processor" not in [finding.code for finding in found.findings]


def test_a_tokenizer_is_not_an_image_processor():
    check(vit(), vit(seed=1), processors=[object(), object()])


# What is refused.


def test_no_models():
    with pytest.raises(HfZipError, match="there are no models to merge; name at least two"):
        preflight([], [])


def test_different_types():
    text = "'model 0' and 'model 1' are of different types, vit and deit; only models of one type"
    with pytest.raises(HfZipError, match=text):
        check(vit(), deit(), force=True)


def test_a_type_without_a_table():
    first, second = vit(), vit(seed=1)
    for model in (first, second):
        model.config.model_type = "vit_of_tomorrow"
    found = check(first, second)
    assert "no table covers ViTForImageClassification" in message(found, "table")
    assert [list(pair.cosines) for pair in found.similarities] == [["weights"]]


def test_different_classes():
    trunk = ViTModel(vit().config)
    with pytest.raises(HfZipError, match="are of different classes, ViTForImageClassification and"):
        check(vit(), trunk, force=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 24),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 2),
        ("intermediate_size", 16),
        ("image_size", 12),
        ("patch_size", 2),
        ("num_channels", 1),
    ],
)
def test_different_shapes(key, value):
    text = rf"1 reason:\n- 'model 0' and 'model 1' differ in {key}, \d+ and {value}; only models of"
    with pytest.raises(HfZipError, match=text):
        check(vit(), vit(seed=1, **{key: value}), force=True)


def test_different_parameters_under_the_same_config():
    other = vit(seed=1)
    for layer in other.vit.layers:
        layer.mlp.fc1 = torch.nn.Linear(12, 19, bias=False)
    text = (
        r"differ in 4 parameters outside their heads: vit.layers.0.mlp.fc1.weight \(20, 12\) and "
        r"\(19, 12\), vit.layers.0.mlp.fc1.bias \(20,\) and absent, .*, …; only models of one shape"
    )
    with pytest.raises(HfZipError, match=text):
        check(vit(), other, force=True)


def test_another_activation_and_force():
    text = (
        r"differ in hidden_act, 'gelu' and 'relu', so the same weights mean different functions. "
        r"Merge models with the same hidden_act, or pass --force"
    )
    with pytest.raises(HfZipError, match=text):
        check(vit(), vit(seed=1, hidden_act="relu"))
    found = check(vit(), vit(seed=1, hidden_act="relu"), force=True)
    assert codes(found, "warning") == ["config"]
    assert message(found, "config").endswith("; by --force the merged model has the first's")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": {"height": 9, "width": 8}}, r"size \{'height': 8, .* and \{'height': 9"),
        ({"resample": 3}, "resample 2 and 3"),
        ({"image_mean": [0.5, 0.5, 0.4]}, r"image_mean \[0.5, 0.5, 0.5\] and \[0.5, 0.5, 0.4\]"),
        ({"image_std": [1, 1, 1]}, r"image_std .* and \[1, 1, 1\]"),
        ({"rescale_factor": 1.0}, r"rescale_factor 0.0039.* and 1.0"),
        ({"do_rescale": False}, r"do_rescale True and None, rescale_factor"),
        ({"do_center_crop": True}, r"do_center_crop None and True"),
    ],
)
def test_other_images_and_force(change, text):
    processors = [processor(), processor(**change)]
    with pytest.raises(HfZipError, match=f"prepare images differently: .*{text}"):
        check(vit(), vit(seed=1), processors=processors)
    found = check(vit(), vit(seed=1), processors=processors, force=True)
    assert codes(found, "warning") == ["processor"]


def test_a_method_for_shared_initialisations():
    different = vit(hidden_size=48, seed=1), vit(hidden_size=48, seed=2)
    text = (
        r"average is for models that .* 'model 0' and 'model 1' are unrelated \(cosines: query "
        r".*, embeddings .*\)\. Use zipfit, which solves every layer again for .*, or pass --force"
    )
    with pytest.raises(HfZipError, match=text):
        check(*different, needs_shared_init=True, method="average")
    found = check(*different, needs_shared_init=True, method="average", force=True)
    assert codes(found, "warning") == ["initialisation"]
    assert check(vit(), vit(), needs_shared_init=True).initialisation == "shared"
    found = check(vit(), finetuned(vit(), 1, amount=1.0), needs_shared_init=True)
    assert "this method is for models" in message(found, "initialisation")
    assert "only somewhat alike" in message(found, "initialisation")


def test_all_problems_are_told_at_once():
    others = vit(seed=1, hidden_act="relu"), vit(seed=2, num_attention_heads=2), deit()
    processors = [processor(), processor(resample=3), processor(), None]
    with pytest.raises(HfZipError, match="for 4 reasons:") as caught:
        check(vit(), *others, processors=processors)
    text = str(caught.value)
    for part in ("different types", "hidden_act", "num_attention_heads", "prepare images"):
        assert part in text
    assert text.count("\n- ") == 4


# The report.


def test_the_report():
    found = check(vit(), finetuned(vit(), 1, amount=0.0), vit(seed=1, layer_norm_eps=1e-6))
    lines = render(found).splitlines()
    assert lines[0].startswith("warning: 'model 0' and 'model 2' differ in layer_norm_eps")
    assert lines[4] == "info: 'model 0' and 'model 1' have the same weights"
    assert lines[5].split() == ["weight", "cosine", *ROLES]
    assert lines[6].split() == ["model", "0", "/", "model", "1", *["1.000"] * 7]
    assert len({len(line) for line in lines[5:9]}) == 1
    assert lines[9].startswith("initialisation: ")
    assert lines[10].startswith("suggestion: ")


def test_the_report_of_one_model_has_no_table():
    assert render(check(vit())).count("\n") == 1


def test_the_report_marks_roles_that_are_absent():
    found = Preflight((), (PairSimilarity("a", "b", {"key": 0.25}),), "unclear", "neither")
    assert render(found).splitlines()[1].split() == ["a", "/", "b", "-", "0.250", *["-"] * 5]


def test_sources_are_left_as_they_are():
    found = sources(vit(), vit(seed=1))
    before = [{n: t.clone() for n, t in s.model.state_dict().items()} for s in found]
    preflight(found, resolve_tasks(found))
    for source, state in zip(found, before, strict=True):
        assert isinstance(source, Source)
        assert all(torch.equal(t, state[n]) for n, t in source.model.state_dict().items())


def test_models_that_cannot_be_refitted_are_to_be_permuted():
    torch.manual_seed(0)
    models = [adapter_for("electra").example() for _ in range(2)]
    found = check(*models, processors=[None, None])
    assert found.initialisation == "different"
    assert found.suggestion.startswith("permute: ")
    with pytest.raises(HfZipError, match=r"Use permute, which first matches the features"):
        check(*models, processors=[None, None], needs_shared_init=True)


def test_text_models_that_are_unrelated_are_to_be_refitted():
    torch.manual_seed(0)
    assert check(bert(), bert(), processors=[None, None]).suggestion.startswith("zipfit: ")


def test_shapes_under_names_of_the_family_are_reported_once():
    a, b = (DistilBertForSequenceClassification(DistilBertConfig(**TINY, dim=d)) for d in (12, 24))
    with pytest.raises(HfZipError, match=r"for 1 reason:\n- .* differ in hidden_size, 12 and 24"):
        check(a, b, processors=[None, None])


def test_the_mlp_is_not_taken_for_the_attention():
    model = bert()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other.bert.encoder.layer:
            layer.attention.output.dense.weight.neg_()
    (pair,) = similarities(sources(model, other, processors=[None, None]), adapter_for("bert"))
    assert pair.cosines["output"] == pytest.approx(-1)
    assert pair.cosines["mlp_out"] == pytest.approx(1)


def test_sign_conflicts_by_hand():
    first, second = vit(), vit()
    with torch.no_grad():
        for layer, other in zip(first.vit.layers, second.vit.layers, strict=True):
            for linear in (layer.attention.q_proj, other.attention.q_proj):
                linear.weight.fill_(1.0)
            other.attention.q_proj.weight[:3] = -2.0  # a quarter of the twelve rows
            other.attention.q_proj.weight[3:6] = 0.0  # which has no sign
            layer.attention.k_proj.weight.zero_()
    (pair,) = similarities(sources(first, second), vit_adapter.ENTRY)
    assert pair.sign_conflicts["query"] == 1 / 3
    assert pair.sign_conflicts["value"] == 0.0
    assert "key" in pair.cosines
    assert "key" not in pair.sign_conflicts


@pytest.mark.parametrize("adapter", [vit_adapter.ENTRY, None])
def test_task_vectors_are_what_was_changed_of_the_base(adapter):
    base = vit(labels=5)
    both, opposite = finetuned(base, 1), copy.deepcopy(base)
    with torch.no_grad():
        for mine, theirs in zip(opposite.parameters(), both.parameters(), strict=True):
            mine -= theirs - mine
    (pair,) = task_vector_similarities(
        sources(both, opposite), {n: p.detach() for n, p in base.named_parameters()}, adapter
    )
    assert pair.cosines == pytest.approx(dict.fromkeys(pair.cosines, -1.0), abs=1e-6)
    assert min(pair.sign_conflicts.values()) > 0.999
    (pair,) = similarities(sources(both, opposite), adapter)
    assert min(pair.cosines.values()) > 0.9


def test_the_base_may_be_of_another_class():
    base = ViTModel(vit().config)
    first, second = finetuned(vit(), 2), finetuned(vit(), 1)
    base.load_state_dict(vit().vit.state_dict(), strict=False)
    (pair,) = check(first, second, base=from_model(base, processor=processor())).task_vectors
    assert {*pair.cosines} == {*ROLES}
    assert check(first, second).task_vectors == ()
