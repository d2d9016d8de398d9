import pytest
from method_runs import build_lists


@pytest.fixture(scope="session")
def listed(scenes, vqa_listed):
    """The corpus with the lists of every task."""
    return build_lists(scenes)
