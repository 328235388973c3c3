"""What is fitted before a rooting, and how often models run for it."""

import pytest
import torch

from hf_zip.adapters import adapter_of
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.refit.head import refit_heads
from hf_zip.rooting.first_fit import first_fit
from tests.models import random_inputs, rows, vit
from tests.test_rooting import SHORT, root_in, trunk_state
from tests.texts import bert


def fit(root, model, inputs, blocks=(1, 2), heads=("classifier",)):
    return first_fit(root, model, inputs, blocks, heads, 1e-3, 5, make_accelerator(), False)


@pytest.mark.parametrize("make", [vit, bert])
def test_the_head_is_that_of_a_fit_of_heads_alone(make):
    model, root = make(3, 1), make(4, 2)
    inputs = rows(random_inputs(model, 16, seed=5))
    found = fit(root, model, inputs)
    (wanted,) = refit_heads(
        trunk_state(root), [model], adapter_of(model), inputs, 1e-3, 7, progress=False
    )
    assert found.heads.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found.heads[name], tensor, atol=1e-5), name
    alone = fit(root, model, inputs, heads=())
    assert not alone.heads
    for one, two in zip(found.maps, alone.maps, strict=True):
        assert torch.equal(one.weight, two.weight)
    assert not fit(root, model, inputs, blocks=()).maps


def test_a_head_that_no_forward_reaches_is_refused():
    model = vit(3, 1)
    model.other = torch.nn.Linear(4, 4)
    with pytest.raises(HfZipError, match="never reached 'other'"):
        fit(model, model, rows(random_inputs(model, 4)), heads=("other",))


def test_beside_its_training_the_model_runs_twice_on_an_input():
    model, root = vit(3, 1), vit(4, 2)
    counts = []

    def count(module, _, given):
        if module is model:  # and no copy of it
            counts.append(len(given["pixel_values"]))

    model.register_forward_pre_hook(count, with_kwargs=True)
    inputs = rows(random_inputs(model, 40, seed=5))
    root_in(model, root, inputs, training={**SHORT, "steps": 0})
    # For maps and head, for the barrier at all places, and to tell blocks and widths.
    assert sum(counts) == 40 + 40 + 2
