"""Checks of numbers and sizes that somebody chose."""

import re

from hf_zip.errors import HfZipError


def check_between(
    name: str, value: float | int, low: float | int = 0, high: float | int = 1
) -> None:
    """Checks that a number lies in a closed interval; left out, that it is a share.

    Args:
        name: What the number is, for the message.
        value: The number.
        low: Its least value.
        high: Its largest value.

    Raises:
        HfZipError: It does not.
    """
    if not low <= value <= high:
        raise HfZipError(f"{name} is {value}; it should be in [{low:g}, {high:g}]")


def check_size(name: str, value: str) -> None:
    """Checks that an option is a size of files as transformers writes it.

    Args:
        name: What the option is called.
        value: Its value.

    Raises:
        HfZipError: It is not.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?[KMGT]B", value.strip(), flags=re.IGNORECASE)
    if found is None or not float(found[1]):
        raise HfZipError(
            f"{name} is {value!r}; it should be a number above 0 with KB, MB, GB or TB, such as 5GB"
        )
