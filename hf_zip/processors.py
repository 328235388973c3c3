"""The parts of a processor: what prepares images, and what prepares texts."""

from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin


def image_processor(processor: Any) -> Any:
    """Returns the part of a processor of images and texts that prepares images, else itself."""
    return _part(processor, "image_processor")


def tokenizer(processor: Any) -> Any:
    """Returns the part of a processor of images and texts that prepares texts, else itself."""
    return _part(processor, "tokenizer")


def prepares_texts(processor: Any) -> bool:
    """Tells whether a processor is a tokenizer or has one."""
    return isinstance(tokenizer(processor), PreTrainedTokenizerBase)


def _part(processor: Any, name: str) -> Any:
    return getattr(processor, name, None) if isinstance(processor, ProcessorMixin) else processor
