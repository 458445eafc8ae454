from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def gallery_writer() -> ModuleType:
    """The script whose processes write to a gallery until they are killed."""
    from tests.gallery import gallery_writer

    return gallery_writer
