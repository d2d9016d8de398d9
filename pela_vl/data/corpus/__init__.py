"""The pre-training corpus: public raw files -> filtered, deduplicated lists or tar shards.

`settings` says what a corpus is made of, `lookup` what of it is on the disk. Sources are listed record by record (`units`,
one module a raw format), each record is examined by a pure function (`examine`) in processes or on Ray (`engines`), and one
gate (`gate`) admits the results in order, so that the corpus is the same bytes whatever the number of workers and however
often it was interrupted (`state`).
"""

from .build import Request, build_corpus
from .settings import CorpusSettings, Filters, Shards

__all__ = ["CorpusSettings", "Filters", "Request", "Shards", "build_corpus"]
