"""What the tests of the adapters share: one comparison."""

import pytest
import torch
from threads import one_thread


@pytest.fixture
def assert_close():
    """assert_close(actual, expected, tolerance): relative Frobenius error."""

    def check(actual, expected, tolerance=1e-5):
        assert actual.dtype == torch.float32
        assert actual.shape == expected.shape
        expected = expected.detach().double()
        error = (actual.double() - expected).norm() / expected.norm()
        assert error < tolerance, f"relative error {error:.2e}"

    return check


@pytest.fixture(scope="module", name="one_thread")
def in_one_thread():
    """All tests of a module in one thread."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def target_model(tiny_flux):
    """The tiny FLUX as a place to load LoRAs into."""
    from lora_locksmith.nodes.host import target_model_of

    return target_model_of(tiny_flux(), None)
