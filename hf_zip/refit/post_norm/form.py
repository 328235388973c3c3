"""Which post-norm models can be fitted."""

from hf_zip.adapters import Adapter
from hf_zip.errors import HfZipError


def post_norm_obstacle(adapter: Adapter) -> str:
    """Returns why the post-norm models of a family cannot be fitted; nothing if they can.

    Args:
        adapter: The family's table.
    """
    if adapter.embedding_projection:
        return f"{adapter.embedding_projection} of {adapter.name!r} projects the embeddings"
    return ""


def check_post_norm(adapter: Adapter) -> None:
    """Checks that the post-norm models of a family can be fitted.

    Args:
        adapter: The family's table.

    Raises:
        HfZipError: They cannot.
    """
    found = post_norm_obstacle(adapter)
    if found:
        raise HfZipError(
            f"{found}, so they have features of their own, which are not fitted; use 'permute' or "
            "'zipit'"
        )
