"""The pre-training corpus: public raw files to filtered, deduplicated lists or tar shards.

`settings` is the schema of a corpus, `lookup` finds which of its files are on the disk. `units` lists each raw file
record by record, with one module per raw format. `examine` checks a record and its image, in worker processes or on Ray
(`engines`). `gate` admits the results in order. `state` keeps the progress on disk. The corpus is therefore
byte-identical for any number of workers and interruptions.
"""

from .build import Request, build_corpus
from .settings import CorpusSettings, Filters, Shards

__all__ = ["CorpusSettings", "Filters", "Request", "Shards", "build_corpus"]
