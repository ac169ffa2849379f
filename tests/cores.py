"""How many cores torch has in a test."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def num_cores(num: int) -> Iterator[None]:
    """A block in which torch has so many, and which leaves it at that."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
        assert torch.get_num_threads() == num
    finally:
        torch.set_num_threads(before)
