"""Laws of every merge method, over every adapter."""

from dataclasses import replace

import pytest
import torch

from hf_zip.adapters import adapters
from hf_zip.asked import read_request
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.execution import build_model, run_method
from hf_zip.methods import methods
from hf_zip.preparation import prepare
from hf_zip.recipe import build
from hf_zip.weighing.feed import Feed
from tests.models import outputs, permuted, random_inputs, randomise, rows

METHODS = list(methods().values())
# Options at which a method gives back what all models agree on. ZipIt!'s alpha below 1 would rather
# merge two features of one model than bring a third copy to a pair. The ridge of a refit shrinks.
NO_RIDGE = {"penalty": 1e-10, "head_penalty": 1e-10}
UNTRAINED = {"training": {"steps": 0}}
LOSSLESS = {
    "rooting": {"then": "zipfit", "then_parameters": NO_RIDGE, **UNTRAINED},
    "distill": {"penalty": 1e-10, **UNTRAINED},
    "fs_merge": {"start": 0, "penalty": 1e-10, **UNTRAINED},
    "zipit": {"alpha": 1.0},
    "zipfit": NO_RIDGE,
    "pleas": NO_RIDGE,
    "twin": {"rank": 1.0},
    "ties": {"density": 1.0},
    "knots": {"density": 1.0},
    "wudi": {"penalty": 1e-9},
    "mats": {"start": "average"},
    "breadcrumbs": {"beta": 0.0, "gamma": 1.0, "merge": "ties", "scaling": 1.0},
    "della": {"drop_rate": 0.0, "window_size": 0.0},
}
# The same for as many copies of a model: a sum of task vectors is as many times as long.
LOSSLESS_COPIES = {
    "task_arithmetic": lambda copies: {"scaling": 1 / copies},
    "dare": lambda copies: {"scaling": 1 / copies, "drop_rate": 0.0},
    "consensus": lambda copies: {"scaling": 1 / copies, "threshold": 0.0},
    "tall_masks": lambda copies: {"scaling": 1 / copies},
    "adamerging": lambda copies: {"start": 1 / copies, **UNTRAINED},
    "wemoe": lambda copies: {"scaling": 1 / copies, **UNTRAINED},
    "transport": lambda copies: {"then_parameters": {"scaling": 1 / copies}},
}
# These change singular values, make equal directions orthogonal, weigh numbers by their rank, or
# leave out the mean over outputs.
NEVER_LOSSLESS = ("ace", "iso_c", "iso_cts", "pcb", "tsv")
every_adapter = pytest.mark.parametrize(
    "adapter", adapters().values(), ids=lambda adapter: adapter.name
)


def depends_on_family(method):
    """Whether a law of the method may hold for one family and fail for another.

    Methods of one parameter at a time, and those that know modules but no table, know no family.
    The average stands for them; what runs models is tried on all families in `test_fisher.py`, and
    what brings task vectors from one base to another in `test_transport.py`.
    """
    by_parameter = method.combination is not None or method.per_task or method.requires.elementwise
    return not (by_parameter or method.requires.own_bases) or method.name == "average"


def allowed(method, adapter):
    """Whether the family has what the method requires of it."""
    lacks_form = method.requires.form_obstacle(adapter)
    return not lacks_form and not (method.requires.plain_scores and adapter.score_biases)


def matches(method):
    """Whether the method finds out which features of the models belong together."""
    needs = method.requires
    return needs.calibration and not needs.shared_init and not needs.own_inputs


def pairs(*, allow=True, matching=False, leave_out=()):
    """A parametrisation by the methods and families that go together, or do not."""
    return pytest.mark.parametrize(
        ("adapter", "method"),
        [
            pytest.param(adapter, method, id=f"{adapter.name}-{method.name}")
            for adapter in adapters().values()
            for method in METHODS
            if allowed(method, adapter) == allow
            and (matches(method) or not matching)
            and (depends_on_family(method) or adapter.name == "bert")
            and method.name not in leave_out
        ],
    )


def example(adapter):
    """A model in float64, so that what is lost is lost by the method; merges are float32."""
    torch.manual_seed(0)
    return randomise(adapter.example().double().eval())


def merge(method, models):
    """Merges models of one task on random inputs."""
    keys = {}
    if method.requires.base:
        family = adapters()[models[0].config.model_type]
        torch.manual_seed(9)
        keys["base_model"] = randomise(family.example().double().eval(), 9)
    tasks = ["same"] * len(models)
    own_bases = None
    if method.requires.own_bases:  # the same base for all but the first, brought to itself
        own_bases = [None, *[keys["base_model"]] * (len(models) - 1)]
    request = read_request(
        models, method=method.name, tasks=tasks, recipe_keys=keys, own_bases=own_bases
    )
    prepared = prepare(request, method, True, make_accelerator(), progress=False)
    calibration = rows(random_inputs(models[0], 128, seed=7))
    own = tuple(Feed(calibration, 32) for _ in models) if method.requires.own_inputs else ()
    runtime = replace(prepared.inputs.runtime, calibration=calibration, own=own)
    prepared = replace(prepared, inputs=replace(prepared.inputs, runtime=runtime))
    lossless = LOSSLESS_COPIES.get(method.name, lambda _: LOSSLESS.get(method.name, {}))
    options = build(method.options, lossless(len(models)), "parameters")
    return build_model(run_method(method, prepared, options), prepared, {}, None, torch.float32)[0]


def relative_error(model, other):
    with torch.no_grad():
        a, b = (outputs(m.double(), random_inputs(m, 64, seed=3)) for m in (model, other))
    agreement = (a.argmax(-1) == b.argmax(-1)).float().mean().item()
    return ((a - b).abs().max() / a.abs().max()).item(), agreement


@pairs(leave_out=NEVER_LOSSLESS)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_model_merged_with_itself_is_itself(adapter, method, copies):
    model, count = example(adapter), method.requires.models or copies
    error, agreement = relative_error(model, merge(method, [model] * count))
    assert error <= 1e-5
    assert agreement == 1


@pairs(matching=True)
@pytest.mark.parametrize("copies", [1, 2])
def test_a_permuted_copy_is_matched_back(adapter, method, copies):
    model = example(adapter)
    models = [model, *(permuted(model, seed) for seed in range(1, copies + 1))]
    error, agreement = relative_error(model, merge(method, models))
    assert error <= 1e-5
    assert agreement == 1


@every_adapter
def test_averaging_a_permuted_copy_is_ruinous(adapter):
    model = example(adapter)
    assert relative_error(model, permuted(model, 1))[0] <= 1e-5
    average = next(method for method in METHODS if method.name == "average")
    error, agreement = relative_error(model, merge(average, [model, permuted(model, 1)]))
    assert error > 0.1
    assert agreement < 0.9


@pairs()
def test_the_same_merge_twice_is_the_same(adapter, method):
    models = [example(adapter), randomise(adapter.example().double().eval(), 5)]
    once, again = merge(method, models), merge(method, models)
    for name, parameter in once.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


@pairs(allow=False)
def test_a_family_that_a_method_cannot_merge_is_refused_before_the_work(adapter, method):
    request = read_request([example(adapter)] * 2, method=method.name, tasks=["same"] * 2)
    request = replace(request, calibration="never looked at")
    with pytest.raises(HfZipError, match=r"use 'permute'"):
        prepare(request, method, True, make_accelerator(), progress=False)


@pairs()
def test_sources_are_left_as_they_were(adapter, method):
    models = [example(adapter), randomise(adapter.example().double().eval(), 5)]
    before = [{name: p.clone() for name, p in m.named_parameters()} for m in models]
    merge(method, models)
    for model, state in zip(models, before, strict=True):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, state[name]), name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_explains_itself(method):
    assert method.title
    assert method.reference.startswith("https://")
    assert method.run.__doc__
