"""Checks of numbers that somebody chose."""

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
