"""Fixtures that tests of every folder use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ssl_zoo.plugins import discover
from ssl_zoo.registry import REGISTRIES


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on several threads, and sums are split differently on each number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def everything_registered() -> None:
    discover()


@pytest.fixture(autouse=True)
def nothing_else_registered(everything_registered: None) -> Iterator[None]:
    """What a test registers it takes away again, or runs in another process: later tests go through all names."""
    before = {group: registry.names() for group, registry in REGISTRIES.items()}
    yield
    assert {group: registry.names() for group, registry in REGISTRIES.items()} == before


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real images: cifar10-train.tar.gz, cifar10-test.tar.gz, imagenet-samples.tar."""
    folder = os.environ.get("SSL_ZOO_DATA")
    if not folder:
        pytest.skip("SSL_ZOO_DATA names no folder with real images")
    if not Path(folder).is_dir():
        pytest.fail(f"SSL_ZOO_DATA={folder} is no directory; unset it to skip the tests that need real images")
    return Path(folder).resolve()
