"""Pre-training: ITC, ITM and MLM with a sample's own pair as the only positive. Evaluated as retrieval."""

from typing import ClassVar

from pela_vl.settings import Settings
from pela_vl.workloads.retrieval import Retrieval


class Pretraining(Retrieval):
    """The intermediate pre-training stage of PELA, and ALBEF's own pre-training."""

    title = "pre-training"
    terms: ClassVar[tuple[str, ...]] = ("itc", "itm", "mlm")
    match_ids: ClassVar[bool] = False

    def tests(self, settings: Settings) -> dict[str, str]:
        """None: the recall on the validation file is in the log; tasks/retrieval.py evaluates checkpoints."""
        return {}
