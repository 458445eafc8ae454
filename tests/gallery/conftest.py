from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def gallery_writer() -> ModuleType:
    """The script whose processes write to a gallery until they are killed."""
    from tests.gallery import gallery_writer

    return gallery_writer


@pytest.fixture(scope="session")
def crash_model() -> ModuleType:
    """What records the changes of a directory, and what a power failure may leave of it."""
    from tests.gallery import crash_model

    return crash_model
