from dataclasses import replace

import pytest
import torch
from transformers import BertForQuestionAnswering, BertForTokenClassification

import hf_zip
from hf_zip.card import render_card
from hf_zip.coefficients import Coefficients, outputs_of_merge
from hf_zip.errors import HfZipError
from hf_zip.report import Report
from hf_zip.training.choices import choices, divergence, entropy
from tests.launch import run_in
from tests.models import random_inputs, rows
from tests.siblings import family, trunk
from tests.texts import bert


def inputs(count=24, seed=7):
    """Tokens as BERT takes them, some inputs shorter than others."""
    return rows(random_inputs(bert(), count, seed=seed))


def merge(models, base, method="adamerging", tasks=None, given=None, **parameters):
    return hf_zip.merge(
        models,
        method=method,
        tasks=tasks or [f"task {k}" for k in range(len(models))],
        base_model=base,
        **({"calibration": inputs()} if given is None else given),
        parameters=parameters,
        progress=False,
    )


def mean_entropy(models, merged):
    """Entropy of each model's head on a merged trunk, in the mean over the inputs."""
    batch = random_inputs(bert(), 24, seed=7)
    with torch.no_grad():
        found = outputs_of_merge(models, merged, [batch] * len(models))
    return sum(entropy(choices(own, "classification", batch)).mean().item() for own in found)


@pytest.fixture(scope="module")
def siblings():
    base, models = family(3, amount=0.2)
    return base, models


def test_without_steps_it_is_task_arithmetic(siblings):
    base, models = siblings
    for granularity in ("layer", "task"):
        found = merge(models, base, start=0.3, granularity=granularity, training={"steps": 0}).model
        expected = merge(models, base, "task_arithmetic", scaling=0.3).model
        for name, parameter in found.named_parameters():
            assert torch.allclose(parameter, expected.get_parameter(name), atol=1e-6), name


def test_ties_vectors_without_steps_are_trimmed_and_of_one_sign(siblings):
    base, models = siblings
    found = merge(models, base, vectors="ties", density=0.3, training={"steps": 0}).model
    names = [n for n, _ in found.named_parameters() if n.startswith("bert.")]
    names = [n for n in names if n.removeprefix("bert.") in dict(trunk(base).named_parameters())]
    origin = {n: trunk(base).get_parameter(n.removeprefix("bert.")) for n in names}
    vectors = {n: torch.stack([m.get_parameter(n) - origin[n] for m in models]) for n in names}
    every = torch.cat([own.flatten(1) for own in vectors.values()], dim=1).abs()
    count = round(0.3 * every.shape[1])
    least = every.sort(dim=1, descending=True).values[:, count - 1]
    for name, own in vectors.items():
        limits = least.reshape(-1, *[1] * (own.dim() - 1))
        kept = torch.where(own.abs() >= limits, own, 0.0)
        agree = torch.where(kept.sign() == kept.sum(dim=0).sign(), kept, 0.0)
        wanted = origin[name] + 0.3 * agree.sum(dim=0)
        assert torch.allclose(found.get_parameter(name), wanted, atol=1e-6), name


@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_gradients_of_factors_are_those_of_finite_differences(granularity):
    base, models = family(2, amount=0.3)
    models = [model.double() for model in models]
    own = {f"bert.{n}": p.detach().double() for n, p in trunk(base).named_parameters()}
    own = {n: p for n, p in own.items() if n in dict(models[0].named_parameters())}
    vectors = {n: torch.stack([m.get_parameter(n) - p for m in models]) for n, p in own.items()}
    vectors = {n: vector.detach() for n, vector in vectors.items()}
    module, batch = Coefficients(own, vectors, {}, granularity, 0.3), random_inputs(bert(), 4)

    def loss():
        found = outputs_of_merge(models, module.merged(), [batch, batch])
        return sum(entropy(choices(x, "classification", batch)).sum() for x in found)

    loss().backward()
    found = module.values.grad.clone()
    for model, layer in [(0, 0), (1, module.values.shape[1] - 1), (1, module.values.shape[1] // 2)]:
        around = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                module.values[model, layer] += step
                around.append(loss().item())
                module.values[model, layer] -= step
        numeric = (around[0] - around[1]) / 2e-5
        assert found[model, layer].item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)
    assert all(p.grad is None for model in models for p in model.parameters())


@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_the_learnt_factors_make_predictions_more_decided(siblings, granularity):
    base, models = siblings
    training = {"steps": 20, "batch_size": 12, "learning_rate": 0.02}
    result = merge(models, base, granularity=granularity, training=training)
    before = merge(models, base, granularity=granularity, training={"steps": 0}).model
    shared = [dict(m.bert.named_parameters(prefix="bert")) for m in (before, result.model)]
    assert mean_entropy(models, shared[1]) < mean_entropy(models, shared[0]) - 0.02
    factors = result.report.coefficients
    assert (list(factors) == ["all"]) == (granularity == "task")
    name = "bert.encoder.layer.1.output.dense.weight"
    learnt = torch.tensor(factors.get(name, factors.get("all")))
    origin = trunk(base).get_parameter(name.removeprefix("bert."))
    vectors = torch.stack([model.get_parameter(name) - origin for model in models])
    wanted = origin + torch.tensordot(learnt, vectors, dims=1)
    assert torch.allclose(result.model.get_parameter(name), wanted, atol=1e-6)
    again = merge(models, base, granularity=granularity, training=training)
    assert again.report.coefficients == factors


def test_each_model_is_decided_on_inputs_of_its_own(siblings):
    base, models = siblings
    training = {"steps": 3, "batch_size": 24}
    own = [inputs(24, seed) for seed in (7, 8)]
    shared = merge(models[:2], base, training=training)
    some = {"calibration": own[0], "own_calibration": [None, own[0]]}
    assert merge(models[:2], base, given=some, training=training).report.coefficients == (
        shared.report.coefficients
    )
    found = merge(models[:2], base, given={"own_calibration": own}, training=training).report
    batches = [random_inputs(bert(), 24, seed=seed) for seed in (7, 8)]
    first = merge(models[:2], base, training={"steps": 0}).model
    with torch.no_grad():
        answers = outputs_of_merge(
            models[:2], dict(first.bert.named_parameters(prefix="bert")), batches
        )
    wanted = sum(
        entropy(choices(answer, "classification", batch)).mean().item()
        for answer, batch in zip(answers, batches, strict=True)
    )
    assert found.trainings[0].losses[0][1] == pytest.approx(wanted, rel=1e-5)


def test_report_and_card_say_what_was_learnt(siblings):
    base, models = siblings
    report = merge(models, base, training={"steps": 2}).report
    (training,) = report.trainings
    assert (training.name, training.steps, len(training.losses)) == ("factors", 2, 2)
    assert Report.from_json(report.to_json()) == report
    card = render_card(report)
    assert "Trained without labels: factors, 2 steps, " in card
    assert "| part | model\\_0 | model\\_1 | model\\_2 |" in card
    assert "| bert.encoder.layer.1 | 0.3" in card
    assert "| bert.embeddings" in card
    several = replace(training, held_out=((1.0, 3.0), (2.0, 2.5)), best_step=1)
    card = render_card(replace(report, trainings=(several,)))
    assert "2 steps, those of step 1 taken" in card
    assert "loss on held-out inputs 3 after step 1, 2.5 after step 2" in card


def test_a_killed_training_of_factors_goes_on_with_the_same_sources_only(siblings, tmp_path):
    base, models = siblings
    training = {"steps": 2, "checkpoints": str(tmp_path)}
    first = merge(models, base, training=training)
    assert merge(models, base, training=training).report.trainings[0].steps == 2
    assert first.report.coefficients == merge(models, base, training=training).report.coefficients
    with pytest.raises(HfZipError, match="of another training: sources differ"):
        merge(models[::-1], base, training=training)


@pytest.mark.slow
def test_two_processes_learn_the_factors_that_one_does(tmp_path):
    script = """
from hf_zip.collect import make_accelerator
from tests.siblings import family
from tests.test_adamerging import merge
accelerator = make_accelerator()
base, models = family(2, amount=0.2)
base, models = base.double(), [model.double() for model in models]
report = merge(models, base, training={"steps": 4, "held_out": 0.1, "batch_size": 6}).report
found = {"factors": report.coefficients, "losses": dict(report.trainings[0].losses)}
"""
    one, two = (run_in(processes, script, tmp_path) for processes in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    for name, factors in one["factors"].items():
        assert two["factors"][name] == pytest.approx(factors, abs=1e-8)


@pytest.mark.parametrize("cls", [BertForTokenClassification, BertForQuestionAnswering])
def test_heads_that_choose_for_tokens_are_merged(cls):
    base = bert(seed=90)
    models = [bert(2, 1, cls=cls) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            for name, parameter in model.bert.named_parameters():
                own = base.bert.get_parameter(name)
                parameter.copy_(own + 0.05 * torch.randn(own.shape))
    report = merge(models, base, tasks=["same"] * 2, training={"steps": 3}).report
    assert all(0 < loss < 10 for _, loss in report.trainings[0].losses)


def test_heads_that_choose_nothing_are_refused():
    base, models = family(2)
    for model in models:
        model.config.problem_type = "regression"
    with pytest.raises(HfZipError, match="head of model 0 is of kind regression, for which there"):
        merge(models, base)


def test_activations_cannot_be_computed_again(siblings):
    base, models = siblings
    with pytest.raises(HfZipError, match=r"leave training\.checkpoint_activations out"):
        merge(models, base, training={"checkpoint_activations": True})


class Output:
    def __init__(self, **values):
        self.__dict__ |= values


def test_entropy_by_hand():
    half = torch.log(torch.tensor(2.0)).item()
    sure = torch.tensor([[0.0, 0.0], [200.0, 0.0]])
    assert entropy(choices(Output(logits=sure), "classification", {})).tolist() == [
        pytest.approx(half),
        0,
    ]
    labels = choices(Output(logits=sure), "multi-label-classification", {})
    assert entropy(labels).tolist() == pytest.approx([half, half / 2])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    tokens = torch.tensor(
        [[[0.0, 0.0], [200.0, 0.0], [0.0, 0.0]], [[200.0, 0.0]] + [[0.0, 0.0]] * 2]
    )
    given = {"attention_mask": mask}
    found = entropy(choices(Output(logits=tokens), "token-classification", given))
    assert found.tolist() == pytest.approx([half / 2, 0])
    start, end = torch.zeros(2, 3), torch.tensor([[200.0, 0.0, 0.0]] * 2)
    spans = choices(Output(start_logits=start, end_logits=end), "question-answering", given)
    assert entropy(spans).tolist() == pytest.approx([half / 2, 0])


def test_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    found = divergence(
        choices(Output(logits=one), "classification", {}),
        choices(Output(logits=two), "classification", {}),
        temperature=2.0,
    )
    wanted = torch.nn.functional.kl_div(
        (two / 2).log_softmax(-1), (one / 2).softmax(-1), reduction="none"
    ).sum(-1)
    assert torch.allclose(found, 4 * wanted)
