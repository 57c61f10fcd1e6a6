"""One exported generator for all tests of the service."""

import gc

import pytest
from services import NAMES, export

from fdistill.serving.generators import Generator
from fdistill.serving.settings import How


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a generator of ten classes that have names."""
    made = export(tmp_path_factory.mktemp("served") / "tiny")
    (made / "classes.txt").write_text("\n".join(NAMES))
    return made


@pytest.fixture(scope="session")
def generator(folder):
    """Loaded, in batches of 8."""
    return Generator("tiny", folder, How(8))


@pytest.fixture(autouse=True)
def collected():
    """What a service has left out of collections is looked at again by whoever comes after."""
    yield
    gc.unfreeze()
