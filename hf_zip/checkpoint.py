"""A folder that `save_pretrained` wrote → its model and processor, checked."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    SequenceFeatureExtractor,
)

from hf_zip.errors import HfZipError, first_few, first_line
from hf_zip.mapped import sha256
from hf_zip.modeling import (
    HfZipClipForImageClassification,
    HfZipConfig,
    HfZipMaskedConfig,
    HfZipMixtureConfig,
    HfZipMultiHeadConfig,
    HfZipRoutedConfig,
)
from hf_zip.peft_adapter import is_adapter
from hf_zip.plain import read_json
from hf_zip.trust import check_inside, check_pickles

# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")
_OWN = {
    HfZipConfig.model_type: "a partial zip",
    HfZipMaskedConfig.model_type: "a merge with weights for every task",
    HfZipRoutedConfig.model_type: "a merge with weights for every task",
    HfZipMixtureConfig.model_type: "a merge with weights for every input",
    HfZipMultiHeadConfig.model_type: "a merge with several heads",
}
_IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")


def weight_files(folder: Path, reference: str, allow_pickle: bool = False) -> list[Path]:
    """Returns the files that hold a checkpoint's weights, after a look at what the folder is.

    Args:
        folder: The folder.
        reference: What the recipe calls it, for messages.
        allow_pickle: Whether weights may be pickles, which can run code when they are read.

    Raises:
        HfZipError: It is no folder, holds no model or no weights, a file is damaged, is a pickle
            or names files outside of the folder.
    """
    if not folder.is_dir():
        raise HfZipError(f"{reference!r} is a file; give the folder that holds its config.json")
    if is_adapter(folder):
        raise HfZipError(
            f"{reference!r} is a PEFT adapter where a whole model should be; merge it into its "
            "base model (merge_and_unload) and save the result"
        )
    if not (folder / "config.json").is_file():
        raise HfZipError(
            f"{reference!r} has no config.json, so it is not a model; give a folder that "
            "save_pretrained wrote"
        )
    files = next((found for found in (sorted(folder.glob(p)) for p in WEIGHTS) if found), [])
    if not files:
        raise HfZipError(
            f"{reference!r} has a config.json but no weights; a model.safetensors should be beside "
            "it (of a repository on the Hub, pickles are fetched only with --allow-pickle)"
        )
    check_pickles(files, reference, allow_pickle)
    check_inside(folder, reference)
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise HfZipError(
                    f"{reference!r}: {file.name} ({file.stat().st_size} bytes) is corrupt or cut "
                    f"short: {first_line(error)}. Copy or download it again (with git, by "
                    "`git lfs pull`)"
                ) from error
    return files


def load_model(
    folder: Path,
    files: Sequence[Path],
    reference: str,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> PreTrainedModel:
    """Returns a checkpoint's model, of the class that its config names.

    Args:
        folder: The folder.
        files: Its weight files.
        reference: What the recipe calls it, for messages.
        dtype: Precision of the parameters; "auto" is that of the files.

    Raises:
        HfZipError: The class is none that can be merged, or a weight is missing, left over, of
            another shape or not finite.
    """
    cls = model_class(folder / "config.json", reference)
    return load_as(cls, folder, files, reference, dtype)


def load_as(
    cls: Any,
    folder: Path,
    files: Sequence[Path],
    reference: str,
    dtype: torch.dtype | Literal["auto"],
    check: Callable[[Mapping[str, Any], str, str], None] | None = None,
) -> PreTrainedModel:
    """Returns a checkpoint's model as one of a given class; the other arguments: `load_model`.

    `check` refuses by the loading info in the place of what refuses all that differs.

    Raises:
        HfZipError: A weight is missing, left over, of another shape or not finite.
    """
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                # Shapes that differ come back in `info`, where they can be named.
                ignore_mismatched_sizes=True,
                use_safetensors=files[0].suffix == ".safetensors",
            )
    except Exception as error:  # whatever a foreign config makes transformers raise
        raise HfZipError(
            f"{reference!r} cannot be loaded as {cls.__name__}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    (check or _check_complete)(info, cls.__name__, reference)
    check_finite(model, reference)
    return cast("PreTrainedModel", model.eval())


def model_class(path: Path, reference: str) -> Any:
    """Returns the class that a checkpoint's config names.

    Args:
        path: Its config.json.
        reference: What the recipe calls it, for messages.

    Raises:
        HfZipError: It names none, or one that cannot be merged.
    """
    config = read_json(path, reference)
    names = config.get("architectures") if isinstance(config, Mapping) else None
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise HfZipError(
            f"{reference!r}: config.json should name one model class under 'architectures', not "
            f"{names!r}; save the model again with save_pretrained"
        )
    own = HfZipClipForImageClassification
    cls = own if names[0] == own.__name__ else getattr(transformers, names[0], None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        if config.get("model_type") in _OWN:
            raise HfZipError(
                f"{reference!r} is {_OWN[config['model_type']]}, which cannot be merged again; "
                "merge its sources"
            )
        reason = (
            "it needs code of its own (trust_remote_code), which is not run"
            if "auto_map" in config
            else f"transformers {transformers.__version__} does not know it; a newer one may"
        )
        raise HfZipError(f"{reference!r} is a {names[0]}, which cannot be merged: {reason}")
    expected = getattr(getattr(cls, "config_class", None), "model_type", None)
    if config.get("model_type") != expected:
        raise HfZipError(
            f"{reference!r}: config.json gives the model_type {config.get('model_type')!r}, but "
            f"its class {names[0]} is of type {expected!r}; correct the one that is wrong"
        )
    return cls


def _check_complete(info: Mapping[str, Any], cls: str, reference: str) -> None:
    shapes = {
        f"{name} is {tuple(found)}, should be {tuple(wanted)}"
        for name, found, wanted in info["mismatched_keys"]
    }
    lists = {
        "missing": info["missing_keys"],
        "left over": info["unexpected_keys"],
        "of another shape": shapes,
    }
    problems = [
        f"{len(x)} {kind} ({first_few(sorted(x), 3, str)})" for kind, x in lists.items() if x
    ]
    if problems:
        raise HfZipError(
            f"the weights of {reference!r} are not those of a {cls}: {', '.join(problems)}. Its "
            "config.json and its weights do not belong together; save the model again"
        )


def check_finite(model: PreTrainedModel, reference: str) -> None:
    """Checks that no parameter or buffer of a model is NaN or infinite.

    Raises:
        HfZipError: One is.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:  # it follows from the config and is not read
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise HfZipError(
                f"{reference!r}: {bad} of {tensor.numel()} values of {name} are NaN or infinite; "
                "the training has diverged or the file is damaged"
            )


def load_processor(folder: Path, reference: str, modalities: Sequence[str] = ("image",)) -> Any:
    """Returns a checkpoint's image processor or feature extractor, else its tokenizer, if any.

    For a model of images and texts that has both it is one processor.

    Args:
        folder: The folder.
        reference: What the recipe calls it, for messages.
        modalities: What the model takes, as its class says; of "text" alone the image processor,
            with which the text half of a model may be saved, is passed over.

    Raises:
        HfZipError: There is one that cannot be loaded.
    """
    images = [name for name in _IMAGE_PROCESSOR if (folder / name).is_file()]
    texts = [name for name in _TOKENIZER if (folder / name).is_file()]
    if not images and not texts:
        return None
    auto: Any = AutoImageProcessor if images else AutoTokenizer
    if images and _prepares_sounds(folder / _IMAGE_PROCESSOR[0]):
        auto = AutoFeatureExtractor
    elif images and texts and "text" in modalities:
        auto = AutoProcessor if "image" in modalities else AutoTokenizer
    # Without torchvision there is only PIL, and the two backends resize differently.
    options = {"backend": "pil"} if auto in (AutoImageProcessor, AutoProcessor) else {}
    try:
        with quiet():
            return auto.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # whatever a foreign file makes transformers raise
        name = texts[0] if auto is AutoTokenizer else images[0]
        raise HfZipError(f"{reference!r}: {name} cannot be loaded: {first_line(error)}") from error


def _prepares_sounds(config: Path) -> bool:
    """Tells whether a file describes a feature extractor of sounds, not of images."""
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("feature_extractor_type")
    except (OSError, ValueError, AttributeError):
        return False  # whoever loads it says what is wrong
    # Image processors were called feature extractors once, and some files still say so.
    cls = getattr(transformers, str(name), None)
    return isinstance(cls, type) and issubclass(cls, SequenceFeatureExtractor)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' load report and bars off the terminal: the errors here say it shorter."""
    settings = transformers.utils.logging
    verbosity, bars = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if bars:
            settings.enable_progress_bar()


def digest(files: Sequence[Path]) -> str:
    """Returns the SHA-256 of a file, or of the list of digests that `sha256sum` prints for several.

    Args:
        files: The files.
    """
    digests = [sha256(file) for file in files]
    if len(files) == 1:
        return digests[0]
    listed = (f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256("".join(listed).encode()).hexdigest()
