"""What the laws share."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads do not speed up tiny tensors, and slow them down on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
