"""A config → small random models of all the classes of its family that transformers lists."""

from collections.abc import Iterator

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_zip.errors import HfZipError, first_line
from hf_zip.tiny import tiny

_CLASSES = (
    modeling_auto.MODEL_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
)


def classes_of(config: PretrainedConfig) -> Iterator[type[PreTrainedModel]]:
    """Returns the class that a config names, then its type's encoders that transformers lists."""
    named = list(config.architectures or ())
    for mapping in _CLASSES:
        found = mapping.get(config.model_type, ())
        named += [found] if isinstance(found, str) else list(found)
    for name in dict.fromkeys(named):
        cls = getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            yield cls


def random_model(cls: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Returns a small model of a class in float64, random throughout.

    At their initialisation biases and normalisations are alike, which would hide their roles.

    Args:
        cls: The class.
        config: Its config, whose sizes do not matter.

    Raises:
        HfZipError: The class takes none of the small sizes.
    """
    try:
        model = tiny(cls, config).double()
    except Exception as error:  # whatever a foreign class makes of small numbers
        raise HfZipError(
            f"{cls.__name__} cannot be made small: {first_line(error)}; write its table by hand, "
            "like hf_zip/adapters/vit.py"
        ) from error
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
    return model
