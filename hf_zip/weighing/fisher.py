"""How much a model's answers depend on each of its parameters: the diagonal Fisher information."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.collect import reduced
from hf_zip.weighing.draws import Numbered, drawn_loss
from hf_zip.weighing.feed import Feed, Run

_AT_ONCE = 32  # inputs whose squares are summed before they are added in float64


class Squares:
    """Sums of squares by name, and how many inputs they are of.

    The squares of a few inputs are summed in float32, or as precisely as the parameters are, and
    these sums in float64: to square every gradient in float64 takes longer than to compute it.

    Args:
        model: Whose parameters they are of.
        device: Where the sums are kept; on the CPU where there is no float64.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        device = torch.device("cpu" if device.type == "mps" else device)
        self._state = {"": torch.zeros((), dtype=torch.float64, device=device)}
        self._recent, self._counted = dict[str, Tensor](), 0
        for name, parameter in model.named_parameters():
            self._state[name] = torch.zeros_like(parameter, dtype=torch.float64, device=device)
            precise = torch.promote_types(parameter.dtype, torch.float32)
            self._recent[name] = torch.zeros_like(parameter, dtype=precise)

    @torch.no_grad()
    def add(self, name: str, gradient: Tensor) -> None:
        """Adds the squares of one input's gradient."""
        gradient = gradient.to(self._recent[name])
        self._recent[name].addcmul_(gradient, gradient)

    def count(self) -> None:
        """Counts an input."""
        self._counted += 1
        if self._counted == _AT_ONCE:
            self._settle()

    @torch.no_grad()
    def _settle(self) -> None:
        self._state[""] += self._counted
        self._counted = 0
        for name, recent in self._recent.items():
            self._state[name] += recent.to(self._state[name])
            recent.zero_()

    def state(self) -> dict[str, Tensor]:
        """Returns the sums; those of several processes add up."""
        self._settle()
        return dict(self._state)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Replaces the sums."""
        self._state = dict(state)

    def means(self) -> dict[str, Tensor]:
        """Returns the means over inputs."""
        self._settle()
        return {name: sums / self._state[""] for name, sums in self._state.items() if name}


def fisher(
    model: PreTrainedModel, feed: Feed, seeds: Sequence[int], run: Run, title: str
) -> dict[str, Float64[Tensor, "..."]]:
    """Returns E (∂ log p(y | x) / ∂θ)² for each parameter, in float64, by name.

    The labels y are drawn from what the model itself answers, one draw for every input x. Inputs
    run one after another, each with a backward of its own: the square of a sum over a batch is not
    the sum of the squares. Any number of processes gives the same.

    Args:
        model: The model with its head; it is moved to the accelerator's device and back.
        feed: What it runs on.
        seeds: Decide what is drawn.
        run: How models are run.
        title: What a progress bar says.

    Raises:
        HfZipError: There are no inputs.

    Source: Merging Models with Fisher-Weighted Averaging (https://arxiv.org/abs/2111.09832),
    equation 5, with one draw of y.
    """
    device = run.accelerator.device
    model.to(device).eval()
    squares = Squares(model, device)
    with differentiable(model):
        parameters = dict(model.named_parameters())
        single = Feed(Numbered(feed.inputs), 1)
        for batch in run.batches(single, title):
            loss = drawn_loss(model, batch, seeds)
            found = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    squares.add(name, gradient)
            squares.count()
    model.cpu()
    return reduced(squares, run.accelerator).means()


@contextmanager
def differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Has gradients of all parameters, also of those that were not trained."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with torch.enable_grad():
            model.requires_grad_(True)
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def names_in_trunk(whole: PreTrainedModel, trunk: PreTrainedModel) -> dict[str, str]:
    """Returns for each parameter of a trunk its name in the model that it is the trunk of."""
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    return {name: names[id(parameter)] for name, parameter in trunk.named_parameters()}
