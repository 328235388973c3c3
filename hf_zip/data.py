"""Data sets by name: found, opened, their rows drawn."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError

from hf_zip.errors import HfZipError, first_line, unknown
from hf_zip.generated import GENERATORS, parts_of

logger = logging.getLogger(__name__)

_WITH_COLUMN = re.compile(r"(?P<data>.+):(?P<column>[A-Za-z_]\w*)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
_KINDS = (
    "a Hub id (org/name or org/name@revision), an image folder, a save_to_disk folder, or a "
    f"{', '.join(name.lstrip('.') for name in _BUILDERS)} file or glob"
)


@dataclass(frozen=True)
class Table:
    """One split of a data set.

    Args:
        name: What the recipe calls the data set, without the column.
        rows: The rows.
        split: Name of the split; nothing for files, which have none.
        column: The input column that the recipe names along with the data set, if any.
        revision: The resolved commit on the Hub; nothing for files.
        folder: Where relative paths in the data start.
    """

    name: str
    rows: Dataset
    split: str | None = None
    column: str | None = None
    revision: str | None = None
    folder: Path | None = None


def open_table(data: str, split: str | None, preferred: Sequence[str]) -> Table:
    """Returns one split of a data set.

    Args:
        data: A Hub id, an image folder, a `save_to_disk` folder, or a parquet, csv, json or txt
            file or glob; `DATA:column` names the input column too. A txt file has one text per
            line, in the column `text`; empty lines are passed over.
        split: The split to take.
        preferred: The splits to take when none is given, the first that exists, if there are
            several.

    Raises:
        HfZipError: There is no such data set in reach, it cannot be read, it has no such split, or
            the split has no rows.
    """
    name, column = split_column(data)
    path = Path(name).expanduser()
    if path.is_dir():
        splits, folder = _open_folder(path, name), path
    elif path.suffix in _BUILDERS:
        files = _matching(path, name)
        splits, folder = _open_files(files, name), files[0].parent
    elif path.exists():
        raise HfZipError(f"data {name!r} is a {path.suffix or 'nameless'} file; give {_KINDS}")
    else:
        splits, folder = _open_hub(name), None
    chosen = _choose(splits, split, preferred, name)
    rows = splits[chosen]
    if not len(rows):
        raise HfZipError(f"data {name!r} have no rows in split {chosen!r}; give some")
    # Of files alone, the library says "train", whatever they hold.
    named = None if path.suffix in _BUILDERS and not path.is_dir() else chosen
    return Table(name, rows, named, column, None if folder else _commit(rows), folder)


def split_column(data: str) -> tuple[str, str | None]:
    """Returns the parts of `DATA:column`; a path that exists as it is has no column.

    Example:
        >>> split_column("org/images:picture")
        ('org/images', 'picture')
    """
    found = _WITH_COLUMN.fullmatch(data)
    if found is None or _exists(data):
        return data, None
    return found["data"], found["column"]


def names_data(text: str) -> bool:
    """Tells whether a text is the name of data, rather than a text to run models on."""
    drawn, source = parts_of(text)
    name, _ = split_column(source)
    found = text in GENERATORS or _exists(name) or Path(name).suffix in _BUILDERS
    return found or bool(drawn and _HUB_ID.fullmatch(name))


def _exists(name: str) -> bool:
    """Tells whether there is a file or folder of a name, which may be a text that none could be."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def draw(count: int, available: int, seed: Sequence[int], name: str) -> list[int]:
    """Returns the positions of rows drawn without replacement, in ascending order.

    Args:
        count: How many; if there are fewer, all.
        available: How many there are.
        seed: Decides which.
        name: What the data are called, for the log.
    """
    if count >= available:
        if count > available:
            logger.info("data %r have %d of %d rows asked for; all used", name, available, count)
        return list(range(available))
    chosen = np.random.default_rng(list(seed)).choice(available, size=count, replace=False)
    return sorted(chosen.tolist())


def _open_folder(path: Path, name: str) -> DatasetDict:
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _as_splits(datasets.load_from_disk(str(path)))
        return _as_splits(datasets.load_dataset(str(path.resolve())))
    except Exception as error:  # whatever foreign files make the library raise
        raise _unreadable(name, error) from error


def _matching(path: Path, name: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not files:
        raise HfZipError(f"data {name!r} match no file; check the path")
    return files


def _open_files(files: Sequence[Path], name: str) -> DatasetDict:
    builder, paths = _BUILDERS[files[0].suffix], [str(file) for file in files]
    try:
        splits = _as_splits(datasets.load_dataset(builder, data_files=paths))
    except Exception as error:  # whatever foreign files make the library raise
        raise _unreadable(name, error) from error
    if builder == "text":
        return DatasetDict({split: _without_empty(rows) for split, rows in splits.items()})
    return splits


def _without_empty(rows: Dataset) -> Dataset:
    return rows.select([row for row, line in enumerate(rows["text"][:]) if line.strip()])


def _open_hub(name: str) -> DatasetDict:
    if not _HUB_ID.fullmatch(name):
        raise HfZipError(f"data {name!r} do not exist; check the path, or give {_KINDS}")
    repository, _, revision = name.partition("@")
    try:
        return _as_splits(datasets.load_dataset(repository, revision=revision or None))
    except DatasetNotFoundError as error:
        raise HfZipError(
            f"data {name!r} are neither a file or folder nor a data set on the Hub that you may "
            "read; check the spelling and the revision, and log in with `hf auth login` if they "
            "are private or gated"
        ) from error
    except ConnectionError as error:
        raise HfZipError(
            f"data {name!r} are neither a file or folder nor in the cache, and the Hub is out of "
            f"reach: {first_line(error)}. Check the path or the connection"
        ) from error
    except Exception as error:  # whatever foreign files make the library raise
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> HfZipError:
    reason = first_line(error.__cause__ or error)  # the library wraps what its readers raise
    return HfZipError(f"data {name!r} cannot be read: {reason}; give {_KINDS}")


def _as_splits(loaded: Any) -> DatasetDict:
    if isinstance(loaded, Dataset):
        return DatasetDict({str(loaded.split or "all"): loaded})
    return loaded


def _choose(splits: DatasetDict, split: str | None, preferred: Sequence[str], name: str) -> str:
    if split is not None:
        if split not in splits:
            raise unknown(f"split of data {name!r}", split, splits)
        return split
    wanted = [choice for choice in preferred if choice in splits]
    if not wanted and len(splits) > 1:
        raise HfZipError(
            f"data {name!r} have the splits {', '.join(splits)}, none of them "
            f"{' or '.join(preferred)}; name one as 'split'"
        )
    return wanted[0] if wanted else next(iter(splits))


def _commit(rows: Dataset) -> str | None:
    """The commit that the datasets library keeps the rows of a data set on the Hub under."""
    for file in rows.cache_files:
        for part in reversed(Path(file["filename"]).parts):
            if _COMMIT.fullmatch(part):
                return part
    return None
