"""Before any import of a Hugging Face library: offline, quiet; and types of hf_zip checked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("hf_zip", "beartype.beartype")

import pytest  # noqa: E402 - after the hook
import torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402

from tests.hub_server import HubServer  # noqa: E402


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub on this machine: what clients here and in processes started by a test reach.

    They are logged in as `me`. The constants are those that huggingface_hub reads from the
    environment when it is imported.
    """
    with HubServer({"mine": "me", "theirs": "them", "reader": ("me", "read")}) as running:
        values = {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        environment = {
            "HF_ENDPOINT": running.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "mine",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield running
