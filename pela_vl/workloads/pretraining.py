"""Pre-training: ITC, ITM and MLM with the own pair as the positive. Evaluated as retrieval."""

from pela_vl.base.errors import UserError
from pela_vl.settings import Settings
from pela_vl.workloads.retrieval import Retrieval


class Pretraining(Retrieval):
    title = "pre-training"
    match_ids = False

    def check(self, settings: Settings) -> None:
        losses = settings.losses
        if losses.mlm == losses.itc == losses.itm == 0:
            raise UserError("losses: itc, itm and mlm are all 0, so there is nothing to train on")

    def tests(self, settings: Settings) -> dict[str, str]:
        """None: the recall on the validation file is in the log; tasks/retrieval.py evaluates checkpoints."""
        return {}
