"""Means along arcs: against angles, rotations and an optimiser."""

import copy
import math

import pytest
import torch
from transformers import BertModel, ResNetForImageClassification

import hf_zip
from hf_zip.combining.sphere import angle_between, karcher_mean
from hf_zip.combining.sphere import slerp as on_arc
from hf_zip.errors import HfZipError
from hf_zip.tiny import tiny
from tests.models import randomise
from tests.siblings import combined, family, tensors


def slerp(first, second, t):
    return on_arc(first, second, t, angle_between(lambda: [torch.stack([first, second])]))


def angle(a, b):
    return torch.arccos(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)).item()


def draw(count, seed=0, shape=(3, 4)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def test_slerp_by_hand():
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    half = math.sqrt(0.5)
    torch.testing.assert_close(slerp(first, second, 0.5), torch.tensor([2 * half, 4 * half]))
    third = slerp(first / 2, second / 4, 1 / 3)
    torch.testing.assert_close(third, torch.tensor([math.sqrt(0.75), 0.5]))


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_divides_the_angle(t):
    first, second = (x / x.norm() for x in draw(2))
    found = slerp(first, second, t)
    assert found.norm().item() == pytest.approx(1)
    assert angle(first, found) == pytest.approx(t * angle(first, second), abs=1e-7)
    assert angle(second, found) == pytest.approx((1 - t) * angle(first, second), abs=1e-7)


def test_slerp_does_not_take_a_small_arc_for_a_line():
    first = torch.zeros(2, dtype=torch.float64)
    first[0] = 1.0
    second = torch.tensor([math.cos(1e-3), math.sin(1e-3)], dtype=torch.float64)
    middle = torch.tensor([math.cos(5e-4), math.sin(5e-4)], dtype=torch.float64)
    assert (slerp(first, second, 0.5) - middle).abs().max() < 1e-14
    assert ((first + second) / 2 - middle).abs().max() > 1e-8


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_slerp_of_one_line_is_straight(factor):
    (first,) = draw(1)
    found = slerp(first, factor * first, 0.25)
    torch.testing.assert_close(found, (0.75 + 0.25 * factor) * first)


def test_the_karcher_mean_of_two_is_on_their_arc():
    first, second = (x / x.norm() for x in draw(2))
    found = karcher_mean(torch.stack([first, second]), [0.7, 0.3], 50, 1e-12)
    torch.testing.assert_close(found, slerp(first, second, 0.3))


def test_the_karcher_mean_has_the_least_squared_angles():
    points, weights = draw(4), [0.1, 0.2, 0.3, 0.4]
    points[0] *= 3
    found = karcher_mean(points, weights, 100, 1e-12)
    norms = points.flatten(1).norm(dim=1)
    assert found.norm().item() == pytest.approx(float(norms @ norms.new_tensor(weights)))

    def cost(mean):
        own = [torch.arccos(torch.cosine_similarity(mean, p.flatten(), dim=0)) for p in points]
        return sum(w * a**2 for w, a in zip(weights, own, strict=True))

    mean = found.flatten().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(mean), mean)
    assert gradient.norm() < 1e-9
    for seed in range(5):
        other = found.flatten() + 0.1 * draw(1, seed + 9)[0].flatten()
        assert cost(other) > cost(found.flatten())


def test_steps_stop_where_they_are_small_or_were_enough():
    points = draw(3)
    exact = karcher_mean(points, [1 / 3] * 3, 100, 1e-12)
    errors = [
        (karcher_mean(points, [1 / 3] * 3, *stop) - exact).norm().item()
        for stop in ((1, 0.0), (3, 0.0), (100, 10.0))
    ]
    assert errors[0] > errors[1] > 1e-9
    assert errors[2] == errors[0]  # the first step is small enough


def test_directions_that_are_absent_or_cancel():
    (point,) = draw(1)
    zeros = torch.zeros_like(point)
    found = karcher_mean(torch.stack([point, zeros]), [0.5, 0.5], 10, 1e-5)
    torch.testing.assert_close(found, point / 2)
    points = draw(3)
    with_zeros = karcher_mean(torch.stack([*points, zeros]), [0.25] * 4, 1, 0.0)
    torch.testing.assert_close(with_zeros, karcher_mean(points, [1 / 3] * 3, 1, 0.0) * 0.75)
    axis = torch.tensor([[2.0, 0.0], [4.0, 0.0]])
    assert karcher_mean(axis, [0.5, 0.5], 10, 1e-5).tolist() == [3.0, 0.0]
    assert torch.equal(karcher_mean(torch.stack([zeros, zeros]), [0.5, 0.5], 10, 1e-5), zeros)
    opposite = karcher_mean(torch.stack([point, -3 * point]), [0.5, 0.5], 10, 1e-5)
    torch.testing.assert_close(opposite, -point)


def test_methods_take_whole_parameters():
    base, states = tensors(2)
    found = combined("slerp", base, states, t=0.3)
    for name in base:
        expected = slerp(states[0][name].double(), states[1][name].double(), 0.3)
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-6)
    base, states = tensors(3)
    models = [{"weight": weight} for weight in (2.0, 1.0, 1.0)]
    found = combined("karcher", base, states, models)
    for name in base:
        points = torch.stack([state[name] for state in states])
        expected = karcher_mean(points, [0.5, 0.25, 0.25], 10, 1e-5)
        assert torch.equal(found[name], expected)


@pytest.mark.parametrize("count", [1, 3])
def test_slerp_of_other_than_two_models_is_refused(count):
    with pytest.raises(HfZipError, match=rf"'slerp' merges 2 models, but there are {count}; give"):
        hf_zip.merge(["nowhere"] * count, method="slerp")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("slerp", {"t": 1.5}, r"t is 1.5; it should be in \[0, 1\]"),
        ("karcher", {"max_iterations": 0}, r"max_iterations is 0; it should be in \[1, inf\]"),
        ("karcher", {"tolerance": -1.0}, r"tolerance is -1.0; it should be in \[0, inf\]"),
    ],
)
def test_options_have_ranges(method, options, message):
    base, states = tensors(2)
    with pytest.raises(HfZipError, match=message):
        combined(method, base, states, **options)


def test_running_statistics_are_averaged_without_a_base_too():
    models = [randomise(tiny(ResNetForImageClassification))]
    models.append(copy.deepcopy(models[0]))
    for seed, model in enumerate(models):
        model.config.id2label = {i: f"{seed}.{i}" for i in range(2)}
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape) + seed)
    merged = hf_zip.merge(models, method="slerp", tasks=["a", "b"], progress=False).model
    for name, buffer in merged.named_buffers():
        if name.endswith("running_var"):
            own = [model.get_buffer(name) for model in models]
            torch.testing.assert_close(buffer, (own[0] + own[1]) / 2)


# Multi-SLERP.


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 0.0)])
def test_multi_slerp_of_two_models_of_one_norm_is_slerp(weights):
    base, states = tensors(2, dtype=torch.float64)
    for state in states:
        for tensor in state.values():
            tensor /= tensor.norm()
    models = [{"weight": weight} for weight in weights]
    found = combined("multi_slerp", base, states, models)
    expected = combined("slerp", base, states, t=weights[1] / sum(weights))
    for name in base:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


def test_multi_slerp_is_one_step_towards_the_karcher_mean():
    points = draw(3)
    units = points / points.flatten(1).norm(dim=1)[:, None, None]
    base, states = {"w": torch.zeros(3, 4)}, [{"w": point} for point in points]
    start = units.mean(dim=0)
    start = start / start.norm()
    arcs = []
    for unit in units:
        across = unit - (start * unit).sum() * start
        arcs.append(across / across.norm() * angle(start, unit))
    step = torch.stack(arcs).mean(dim=0)
    direction = step.norm().cos() * start + step.norm().sin() * step / step.norm()
    expected = direction * points.flatten(1).norm(dim=1).mean()
    found = combined("multi_slerp", base, states)["w"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    karcher = combined("karcher", base, states, max_iterations=50, tolerance=0.0)["w"]
    assert angle(found, karcher) < angle(start, karcher) < 0.5
    plane = combined("multi_slerp", base, states, tangent="plane")["w"]
    norm = points.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(plane, start * norm, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["slerp", "multi_slerp"])
def test_task_vectors_are_interpolated_around_the_base(method):
    base, (first, second) = family(2, cls=BertModel)
    tasks = ["a", "b"]

    def merge(models, **keys):
        return hf_zip.merge(models, method=method, tasks=tasks, progress=False, **keys)

    models = [first, second]
    with pytest.raises(HfZipError, match=f"'{method}' needs the model that the others were fine"):
        merge(models, parameters={"origin": "base"})
    around = merge(models, parameters={"origin": "base"}, base_model=base).model
    plain, beside = merge(models).model, merge(models, base_model=base).model
    name = "encoder.layer.1.output.dense.weight"
    origin = base.get_parameter(name)
    moved = torch.stack([model.bert.get_parameter(name) - origin for model in models]).double()
    found = around.bert.get_parameter(name) - origin
    states = [{"w": own} for own in moved.detach()]
    expected = combined(method, {"w": torch.zeros_like(moved[0])}, states)["w"]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(plain.bert.get_parameter(name), beside.bert.get_parameter(name))
    assert not torch.allclose(plain.bert.get_parameter(name), around.bert.get_parameter(name))


def test_an_angle_leaves_tensors_as_they_are():
    both = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = both.clone()
    assert angle_between(lambda: [both]) > 0
    assert torch.equal(both, before)
