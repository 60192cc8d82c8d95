"""The fixture over all registered methods."""

import pytest
from tiny_methods import METHODS, Tiny, tiny_batch, tiny_method


@pytest.fixture(params=METHODS.names())
def tiny(request: pytest.FixtureRequest) -> Tiny:
    method = tiny_method(request.param)
    return Tiny(request.param, method, tiny_batch(method, request.param))
