"""Before any import of a Hugging Face library: offline, quiet; and types of hf_zip checked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("hf_zip", "beartype.beartype")

import pytest  # noqa: E402 - after the hook
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)
