"""What needs a GPU, and is skipped where there is none: `python -m pytest tests/gpu`. It needs neither vLLM nor a cluster."""

import pytest
import torch

from rlvr_trainer.pretrained import write_tiny_model


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """A GPU that torch can use."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use: run `python -m pytest tests/gpu` on a machine with one")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with the tiny model."""
    place = tmp_path_factory.mktemp("gpu") / "tiny"
    write_tiny_model(place)
    return place


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 products without TF32, so that both devices compute the same."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
