import copy
import re

import pytest
import torch
from transformers import ViTForImageClassification

import hf_zip
from hf_zip.assemble import CONFIG_KEY, assemble, merge_record, stack_heads, task_model
from hf_zip.errors import HfZipError
from hf_zip.outcome import Merged
from hf_zip.sources import Source
from hf_zip.tasks import resolve_tasks
from tests.models import images, vit


def merged_of(*models):
    """A "merge" that keeps the first model's trunk and every model's head."""
    states = [dict(model.named_parameters()) for model in models]
    heads = tuple({n: t for n, t in s.items() if n.startswith("classifier.")} for s in states)
    trunk = {n: t for n, t in states[0].items() if n not in heads[0]}
    return Merged(trunk, heads)


def tasks_of(*models, names=None):
    names = names or [None] * len(models)
    return resolve_tasks(
        [
            Source(f"m{i}", model, name, f"m{i}")
            for i, (model, name) in enumerate(zip(models, names, strict=True))
        ]
    )


def test_rows_of_all_tasks_are_stacked_in_order():
    a, b = vit(3, seed=1), vit(2, seed=2)
    model = assemble(merged_of(a, b), a, tasks_of(a, b), {"merge_method": "x"})
    assert isinstance(model, ViTForImageClassification)
    assert model.num_labels == 5
    assert torch.equal(
        model.classifier.weight, torch.cat([a.classifier.weight, b.classifier.weight])
    )
    assert torch.equal(model.classifier.bias, torch.cat([a.classifier.bias, b.classifier.bias]))
    labels = [*a.config.id2label.values(), *b.config.id2label.values()]
    assert list(model.config.id2label.values()) == labels
    assert model.config.label2id == {label: i for i, label in enumerate(labels)}
    record = merge_record(model.config)
    assert record["merge_method"] == "x"
    assert [(t["name"], t["start"], len(t["labels"])) for t in record["tasks"]] == [
        ("m0", 0, 3),
        ("m1", 3, 2),
    ]
    torch.testing.assert_close(model(**images(a)).logits[:, :3], a(**images(a)).logits)


def test_double_precision_is_not_lost_on_the_way():
    a = vit(3, seed=1).double()
    with torch.no_grad():
        a.classifier.bias += 1e-12
    model = assemble(merged_of(a), a, tasks_of(a), {}, torch.float64)
    assert torch.equal(model.classifier.bias, a.classifier.bias)
    assert torch.equal(task_model(model, "m0").classifier.bias, a.classifier.bias)


def test_models_of_one_task_share_rows_by_label():
    a = vit(2, seed=1, names=["cat", "dog"])
    b = vit(2, seed=2, names=["dog", "cat"])
    head = stack_heads(merged_of(a, b), tasks_of(a, b, names=["pets", "pets"]))
    expected = (a.classifier.weight + b.classifier.weight[[1, 0]]) / 2
    torch.testing.assert_close(head["classifier.weight"], expected)


def test_the_template_is_left_as_it_was():
    a, b = vit(3, seed=1), vit(2, seed=2)
    assemble(merged_of(a, b), a, tasks_of(a, b), {}, torch.bfloat16)
    assert a.num_labels == 3
    assert a.dtype == torch.float32
    assert not hasattr(a.config, CONFIG_KEY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_has_the_precision_asked_for(dtype):
    a, b = vit(3, seed=1), vit(2, seed=2)
    model = assemble(merged_of(a, b), a, tasks_of(a, b), {}, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.config.dtype == dtype


def test_one_tasks_model_answers_as_its_rows_do():
    a, b = vit(3, seed=1), vit(2, seed=2)
    model = assemble(merged_of(a, b), a, tasks_of(a, b, names=["a", "b"]), {})
    single = task_model(model, "b")
    assert single.config.id2label == b.config.id2label
    assert not hasattr(single.config, CONFIG_KEY)
    torch.testing.assert_close(single(**images(a)).logits, model(**images(a)).logits[:, 3:])
    assert model.num_labels == 5


def test_default_labels_get_the_tasks_name_and_lose_it_again():
    names = ["LABEL_0", "LABEL_1"]
    a, b = vit(2, seed=1, names=names), vit(2, seed=2, names=names)
    model = assemble(merged_of(a, b), a, tasks_of(a, b, names=["a", "b"]), {})
    assert list(model.config.id2label.values()) == [
        "a/LABEL_0",
        "a/LABEL_1",
        "b/LABEL_0",
        "b/LABEL_1",
    ]
    assert list(task_model(model, "b").config.id2label.values()) == names


def test_an_unknown_task_is_refused_with_a_suggestion():
    a = vit(3)
    model = assemble(merged_of(a), a, tasks_of(a, names=["cars"]), {})
    with pytest.raises(HfZipError, match=re.escape("unknown task 'car'. Did you mean 'cars'?")):
        task_model(model, "car")


def test_a_model_that_is_no_merge_is_refused():
    with pytest.raises(HfZipError, match="was not merged by hf_zip"):
        task_model(vit(), "a")


def test_parameters_that_do_not_fit_are_refused():
    a, b = vit(3), vit(3, hidden_size=24)
    with pytest.raises(HfZipError, match=r"do not fit ViTForImageClassification: .*cls_token"):
        assemble(merged_of(b), a, tasks_of(a), {})


def test_models_with_other_parts_than_their_config_gives_are_refused():
    own = vit(3, seed=1)
    model = type(own.vit)(own.config, add_pooling_layer=False)
    with pytest.raises(
        HfZipError, match=r"other parts than ViTModel makes .*'pooler\.dense\.weight'"
    ):
        hf_zip.merge([model, copy.deepcopy(model)], method="average", progress=False)
