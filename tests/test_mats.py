"""MaTS against the linear system written out, and its curvature against gradients row by row."""

import pytest
import torch

from hf_zip.collect import make_accelerator
from hf_zip.combining.conjugate import conjugate_gradients, kronecker_sum
from hf_zip.errors import HfZipError
from hf_zip.learned import learned
from hf_zip.methods.mats import MatsOptions, _solved
from hf_zip.weighing.curvature import Curvature, curvatures
from hf_zip.weighing.draws import Numbered, drawn_loss
from hf_zip.weighing.feed import Feed, Run
from tests.siblings import family
from tests.test_regmean import DENSE, read, siblings, texts
from tests.weighing import run

RUN = Run(make_accelerator(), progress=False)


def system(models=2, high=3, wide=4, seed=0, rank=None):
    generator = torch.Generator().manual_seed(seed)

    def moment(size):
        rows = torch.randn(rank or size + 2, size, generator=generator, dtype=torch.float64)
        return rows.T @ rows

    lefts = torch.stack([moment(high) for _ in range(models)])
    rights = torch.stack([moment(wide) for _ in range(models)])
    matrices = torch.randn(models, high, wide, generator=generator, dtype=torch.float64)
    return lefts, rights, matrices


def dense(lefts, rights, matrices):
    """Σ B_k X A_k = Σ B_k W_k A_k, over all numbers of X in a row."""
    whole = sum(torch.kron(b, a) for b, a in zip(lefts, rights, strict=True))
    right = (lefts @ matrices @ rights).sum(dim=0)
    return whole, right


def test_it_solves_what_the_kronecker_products_say():
    lefts, rights, matrices = system()
    whole, right = dense(lefts, rights, matrices)
    expected = torch.linalg.solve(whole, right.flatten()).reshape(right.shape)
    found = conjugate_gradients(kronecker_sum(lefts, rights), right, torch.zeros_like(right))
    torch.testing.assert_close(found.solution, expected, rtol=1e-6, atol=1e-8)
    assert found.iterations <= 40
    assert found.residual <= 1e-10


def test_what_the_system_says_nothing_of_stays_at_the_start():
    lefts, rights, matrices = system(high=4, wide=5, rank=1)
    whole, right = dense(lefts, rights, matrices)
    start = torch.ones_like(right)
    expected = start.flatten() + torch.linalg.pinv(whole, rtol=1e-12, hermitian=True) @ (
        right.flatten() - whole @ start.flatten()
    )
    found = conjugate_gradients(kronecker_sum(lefts, rights), right, start)
    torch.testing.assert_close(found.solution.flatten(), expected, rtol=1e-6, atol=1e-6)


def test_no_steps_and_a_solution_stay_where_they_are():
    lefts, rights, matrices = system()
    _, right = dense(lefts, rights, matrices)
    apply = kronecker_sum(lefts, rights)
    start = torch.ones_like(right)
    assert torch.equal(conjugate_gradients(apply, right, start, iterations=0).solution, start)
    found = conjugate_gradients(apply, apply(start), start)
    assert torch.equal(found.solution, start)
    assert (found.iterations, found.residual) == (0, 0.0)


def uneven(models=2, high=12, wide=10):
    """A system that hardly depends on some directions, as those of real layers."""
    generator = torch.Generator().manual_seed(0)

    def moments(size):
        square = torch.randn(models, size, size, generator=generator, dtype=torch.float64)
        turned, lengths = torch.linalg.qr(square).Q, torch.logspace(0, -4, size).double()
        return turned * lengths @ turned.mT

    matrices = torch.randn(models, high, wide, generator=generator, dtype=torch.float64)
    return moments(high), moments(wide), matrices


def best_after(whole, right, steps):
    """What lies nearest to the solution, by the system's own length, of all that steps can reach."""
    basis = right[:, None] / right.norm()
    for _ in range(steps - 1):
        further = whole @ basis[:, -1]
        for _ in range(2):  # once leaves rounding of the first
            further = further - basis @ (basis.T @ further)
        basis = torch.cat([basis, further[:, None] / further.norm()], dim=1)
    return basis @ torch.linalg.solve(basis.T @ whole @ basis, basis.T @ right)


@pytest.mark.parametrize(("kept", "near"), [(100, True), (0, False)])
def test_steps_in_float32_are_those_of_exact_numbers(kept, near):
    lefts, rights, matrices = uneven()
    whole, right = dense(lefts, rights, matrices)
    quick = kronecker_sum(lefts.float(), rights.float())
    apply, start = kronecker_sum(lefts, rights), torch.zeros_like(right)
    found = conjugate_gradients(apply, right, start, 30, quick=quick, kept=kept)
    expected = best_after(whole, right.flatten(), 30)
    error = (found.solution.flatten() - expected).norm() / expected.norm()
    assert found.iterations == 30
    assert (error < 1e-3) == near
    left = (right - apply(found.solution)).norm() / right.norm()
    assert found.residual == pytest.approx(float(left))


def test_float32_ends_where_float64_does():
    lefts, rights, matrices = system()
    _, right = dense(lefts, rights, matrices)
    apply, start = kronecker_sum(lefts, rights), torch.zeros_like(right)
    exact = conjugate_gradients(apply, right, start, 1000)
    quick = kronecker_sum(lefts.float(), rights.float())
    found = conjugate_gradients(apply, right, start, 1000, quick=quick)
    assert found.residual <= 1e-10
    torch.testing.assert_close(found.solution, exact.solution, rtol=1e-6, atol=1e-8)


def test_gradients_too_small_for_float32_say_as_much():
    lefts, rights, matrices = system()
    solved = [
        _solved(
            list(matrices),
            torch.zeros_like(matrices[0]),
            [Curvature(a, scale * b) for a, b in zip(rights, lefts, strict=True)],
            (0.5, 0.5),
            MatsOptions(),
        )
        for scale in (1.0, 1e-60, 0.0)
    ]
    torch.testing.assert_close(solved[0], solved[1])
    assert torch.equal(solved[2], torch.zeros_like(matrices[0]))


def test_curvature_is_that_of_every_input_run_by_itself():
    (model,), inputs = siblings(1), texts(1, 5)
    query = "bert.encoder.layer.0.attention.self.query"
    layers = {DENSE: DENSE, query: query, query.replace("query", "value"): query}
    found = curvatures(model, layers, Feed(inputs, 3), (7,), RUN, "")
    numbered, module, total = Numbered(inputs), model.get_submodule(DENSE), 0.0
    for position in range(5):
        outputs = []
        handle = module.register_forward_hook(lambda _, __, out, into=outputs: into.append(out))
        loss = drawn_loss(model, numbered.collate([numbered[position]]), (7,))
        handle.remove()
        (slope,) = torch.autograd.grad(loss, outputs)
        total = total + slope[0].T @ slope[0] / 5
    torch.testing.assert_close(found[DENSE].outputs, total)
    for layer in (DENSE, query):
        x = read(model, inputs, layer)
        torch.testing.assert_close(found[layer].inputs, x.T @ x / len(x))
    assert found[query.replace("query", "value")].inputs is found[query].inputs


def test_a_layer_solves_its_system_and_the_rest_stays_at_the_start():
    base, _ = family(2)
    origin = {name: tensor.double() for name, tensor in learned(base).items()}
    models, feeds = siblings(), [texts(1), texts(2)]
    options = {"weights": [1.0, 3.0], "base": origin, "seed": 3}
    found = run("mats", models, feeds, iterations=1000, **options)
    parts = [
        curvatures(model, {DENSE: DENSE}, Feed(inputs, 6), (3, k), RUN, "")[DENSE]
        for k, (model, inputs) in enumerate(zip(models, feeds, strict=True))
    ]
    x = found[f"{DENSE}.weight"]
    left = sum(
        w * p.outputs @ (x - m.get_submodule(DENSE).weight.detach()) @ p.inputs
        for w, p, m in zip((1.0, 3.0), parts, models, strict=True)
    )
    scale = sum((p.outputs @ m.get_submodule(DENSE).weight @ p.inputs).norm()
                for p, m in zip(parts, models, strict=True))  # fmt: skip
    assert left.norm() <= 1e-6 * scale
    start = run("mats", models, feeds, iterations=0, **options)
    name = "bert.embeddings.word_embeddings.weight"
    one, two = (model.get_parameter(name).detach() - origin[name] for model in models)
    torch.testing.assert_close(start[name], origin[name] + 0.3 * (one + 3 * two))
    assert torch.equal(found[name], start[name])
    mean = run("mats", models, feeds, iterations=0, start="average", **options)
    one, two = (model.get_submodule(DENSE).weight.detach() for model in models)
    torch.testing.assert_close(mean[f"{DENSE}.weight"], (one + 3 * two) / 4)


def test_layers_may_be_matched_some_at_a_time():
    base, _ = family(2)
    models, feeds = siblings(), [texts(1), texts(2)]
    once, parts = (
        run("mats", models, feeds, base=learned(base), iterations=3, memory=memory)
        for memory in (4.0, 1e-5)  # GiB: of one layer, and of all steps of one
    )
    for name, parameter in once.items():
        torch.testing.assert_close(parameter, parts[name], msg=name)


def test_wrong_options_are_refused():
    with pytest.raises(HfZipError, match="iterations is -1; it should be at least 0"):
        MatsOptions(iterations=-1)
    with pytest.raises(HfZipError, match="memory is -1"):
        MatsOptions(memory=-1.0)
    with pytest.raises(HfZipError, match="'mats' weighs what each model does"):
        run("mats", siblings(), [texts(1), texts(2)], weights=[1.0, -2.0])
