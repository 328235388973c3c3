"""A model, its root and unlabelled inputs → a model in the root's parameter space."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Subset
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import State
from hf_zip.collect import check_inputs
from hf_zip.errors import HfZipError
from hf_zip.groups import head_names
from hf_zip.learned import learned
from hf_zip.refit.head import with_trunk
from hf_zip.refit.reconfigured import reconfigured
from hf_zip.rooting.barrier import loss_barrier
from hf_zip.rooting.lesson import identity_of_lessons, losses, losses_on, plan_lesson
from hf_zip.rooting.lora import add_lora, fold_lora
from hf_zip.rooting.options import RootingOptions
from hf_zip.rooting.start import transported_start
from hf_zip.rooting.student import compute_activations_again, make_student, put
from hf_zip.training.learner import Learner
from hf_zip.training.trained import Trained

logger = logging.getLogger(__name__)

_FOR_BARRIER = 256  # inputs at most on which the barrier is measured


@dataclass(frozen=True)
class Rooted:
    """A model in the parameter space of its root.

    Args:
        model: The rooted model, of the class of what it learnt from, on the CPU.
        trained: What is known of its training.
        barrier: Loss barrier on the way from the root, see `loss_barrier`.
    """

    model: PreTrainedModel
    trained: Trained
    barrier: float


def root_model(
    model: PreTrainedModel,
    root: State,
    inputs: Any,
    options: RootingOptions,
    batch_size: int,
    accelerator: Accelerator,
    adapter: Adapter | None = None,
    seed: int = 0,
    name: str = "rooting",
    progress: bool = True,
    head: State | None = None,
    config: Mapping[str, Any] | None = None,
    own_base: State | None = None,
) -> Rooted:
    """Returns a copy of a root that was trained to do what a model does, on unlabelled inputs.

    It begins with the root's parameters and a head that is given or, where the family's table names
    it, fitted to the model's logits on the root's features, else with the model's own; or, as the
    options say, with what the model was fine-tuned to do brought to the root. It learns the model's
    answers, and features from which maps that stay as they are fitted at the start give the
    model's. The anchor of the training keeps it near its start. Nothing is dropped out.

    Args:
        model: The model to learn from; it is left unchanged.
        root: The root's parameters by the names that the model has for them, heads left out; what
            is absent begins with the model's own.
        inputs: A map-style data set of keyword arguments for the model.
        options: How to root.
        batch_size: Inputs per forward, where nothing is trained.
        accelerator: The accelerator to run under.
        adapter: The family's table, if there is one.
        seed: Decides the batches.
        name: What the training is called.
        progress: Show progress bars, on the main process.
        head: The head that reads the root's features, where it is known.
        config: Entries of the root's config that differ from the model's.
        own_base: What the model was fine-tuned from, likewise, where the copy begins as its
            transport; there is no `head` then.

    Raises:
        HfZipError: There are no inputs, the models cannot be compared, the training fails, or what
            the copy should begin as is not known.

    Source: the first stage of GAN Cocktail (https://arxiv.org/abs/2106.03847), for generators;
    features as by FitNets (https://arxiv.org/abs/1412.6550), answers as by distillation
    (https://arxiv.org/abs/1503.02531).
    """
    from hf_zip.training.train import train  # whose transformers.Trainer takes seconds to import

    check_inputs(inputs)
    device, running = accelerator.device, (batch_size, accelerator, progress)
    teacher = model.to(device).eval()
    like = reconfigured(teacher, config) if config else teacher
    _check_shapes(like, root)
    begin: State = root
    fitted: Sequence[str] = ()
    if options.start == "transport":
        given = (teacher, root, own_base, inputs, adapter, options.penalty, running)
        begin, head = transported_start(*given)
        teacher.to(device)
    elif head is None and adapter is not None:
        fitted = head_names(teacher, adapter)
    student = make_student(like, {**begin, **(head or {})}).eval()
    lesson, heads = plan_lesson(student, teacher, inputs, options, *running, heads=fitted)
    put(student, heads)

    def loss(own: Any, batch: Mapping[str, Any]) -> Tensor:
        return losses(own, batch, [lesson])[0]

    def loss_on(batch: Mapping[str, Any]) -> Callable[[Any], Tensor]:
        found = losses_on(batch, [lesson])
        return lambda own: found(own)[0]

    if options.lora_rank:
        add_lora(student, root, options.lora_rank, seed)
    if options.training.checkpoint_activations:
        compute_activations_again(student)
    known = identity_of_lessons([teacher], options, options.training)
    trained = train(
        Learner(student, loss),
        inputs,
        options.training,
        seed,
        identity={**known, "lora_rank": options.lora_rank, "start": options.start},
        description=name,
        progress=progress,
    )
    if options.lora_rank:
        fold_lora(student)
    student.eval()
    few = Subset(inputs, range(min(len(inputs), _FOR_BARRIER)))
    trunk = {n: p.detach().clone() for n, p in student.named_parameters() if n in root}
    barrier = loss_barrier(student, [root, trunk], loss_on, few, batch_size, accelerator)
    if barrier > options.tolerance:
        logger.warning(
            "%s: on the way from the root the loss rises by %.0f %% of its larger end, which is "
            "above the tolerance of %.0f %%; merges with it may lose much. Raise training.anchor, "
            "or lower training.learning_rate",
            name,
            100 * barrier,
            100 * options.tolerance,
        )
    model.cpu()
    rooted = with_trunk(like.cpu(), learned(student.cpu()))
    return Rooted(rooted.eval(), trained, barrier)


def _check_shapes(model: PreTrainedModel, root: State) -> None:
    """Checks that a root has the shapes of what is to be rooted there."""
    misfits = [n for n, x in root.items() if x.shape != model.get_parameter(n).shape]
    if misfits:
        name = misfits[0]
        raise HfZipError(
            f"the root and the model differ in {len(misfits)} parameters, such as {name} "
            f"{tuple(root[name].shape)} and {tuple(model.get_parameter(name).shape)}; a model can "
            "only be rooted in one of its own shape"
        )
