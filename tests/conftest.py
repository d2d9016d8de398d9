import sys
from pathlib import Path

import pytest

# tiny_albef.py, tiny_runs.py and convert/published_files.py are shared by the tests of several folders
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "convert")]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A corpus of a few scenes: lists/scenes_{pretrain,train,val,test}.json below the folder."""
    from pela_vl.data.scenes import Request, build_corpus

    folder = tmp_path_factory.mktemp("scenes") / "corpus"
    build_corpus(Request(train=24, val=6, test=6, seed=3, image_size=32), folder, workers=1, report=False)
    return folder
