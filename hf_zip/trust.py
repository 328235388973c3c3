"""What in a checkpoint could run code or read files of its reader: refused before loading."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_zip.errors import HfZipError
from hf_zip.plain import read_json

_PICKLES = (".bin", ".pt", ".pth", ".pkl")
# Where earlier versions of transformers noted what they had read; nothing reads these again.
_NOTES = ("name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file")
# Files that transformers makes objects of, with their entries as arguments.
_CONFIGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def check_pickles(files: Sequence[Path], reference: str, allowed: bool) -> None:
    """Checks that no weights are pickles, unless these are asked for.

    Args:
        files: The files that hold a checkpoint's weights.
        reference: What the recipe calls the checkpoint, for messages.
        allowed: Whether pickles are asked for.

    Raises:
        HfZipError: A file is a pickle.
    """
    pickles = [file.name for file in files if file.suffix in _PICKLES]
    if pickles and not allowed:
        raise HfZipError(
            f"{reference!r} holds its weights in {pickles[0]}, a pickle, which can run code when "
            "it is read; save the model again with save_pretrained, or, if you trust where it "
            "comes from, allow pickles (--allow-pickle, allow_pickle=True)"
        )


def check_inside(folder: Path, reference: str) -> None:
    """Checks that the files of a checkpoint name no file outside of its folder.

    An index of shards may name files of the folder only. The entries of tokenizers and processors
    are free texts, so that only those are refused that are the path of a file elsewhere.

    Args:
        folder: The folder.
        reference: What the recipe calls it, for messages.

    Raises:
        HfZipError: One does, or is not JSON.
    """
    for index in sorted(folder.glob("*.index.json")):
        shards = _read(index, reference).get("weight_map")
        if not isinstance(shards, Mapping):
            raise HfZipError(
                f"{reference!r}: {index.name} should have a 'weight_map' from parameters to files, "
                f"but has {type(shards).__name__}; save the model again"
            )
        for shard in shards.values():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise _outside(reference, index.name, shard)
    for name in _CONFIGS:
        if (folder / name).is_file():
            for text in _texts(_read(folder / name, reference)):
                if _is_elsewhere(text, folder):
                    raise _outside(reference, name, text)


def _read(path: Path, reference: str) -> Mapping[str, Any]:
    values = read_json(path, reference)
    return values if isinstance(values, Mapping) else {"": values}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _NOTES:
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _is_elsewhere(text: str, folder: Path) -> bool:
    if "/" not in text and "\\" not in text:
        return False  # a bare name lies in the folder, or is no path
    for path in (Path(text), folder / text):
        try:
            if path.is_file() and not path.resolve().is_relative_to(folder.resolve()):
                return True
        except (OSError, ValueError):  # too long, or not a path at all
            continue
    return False


def _outside(reference: str, file: str, value: Any) -> HfZipError:
    return HfZipError(
        f"{reference!r}: {file} names the file {str(value)[:100]!r}, which is outside of the "
        "model's folder and is not read; a model should bring its own files"
    )
