"""Build the pre-training corpus from whatever public downloads lie below data/raw: filtered, deduplicated, checked, reported.

python data_prep/build_pretrain_corpus.py
python data_prep/build_pretrain_corpus.py --set sources.cc12m.use=never shards.image_size=384
Run it again after an interruption to go on. configs/corpus.yaml has the choices, docs/corpus.md the formats and reasons.
"""

import argparse
from pathlib import Path

from pela_vl.base import config
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.base.system import usable_cores
from pela_vl.data.corpus import CorpusSettings, build_corpus
from pela_vl.data.corpus.lookup import download_text, entries_table, look_up
from pela_vl.data.corpus.report import table

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "corpus.yaml"


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__)
    options.add_argument("--config", default=CONFIG, help="YAML file (default: configs/corpus.yaml)")
    options.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change any key of the config"
    )
    return options


def main() -> None:
    args = parser().parse_args()
    settings = config.load(CorpusSettings, args.config, args.set)
    request, entries = look_up(settings)
    if request is None:
        print(download_text(settings, entries), end="")
        raise UserError(f"{settings.raw}: holds no source of a corpus")
    print(entries_table(settings, entries), end="", flush=True)
    if not request.held_out:
        print("no held-out set was found: images of test sets may be in the corpus", flush=True)
    workers = usable_cores() if settings.workers is None else settings.workers
    report, worked = build_corpus(
        request,
        Path(settings.output),
        workers,
        settings.engine,
        settings.ray_address,
        skip_damaged=settings.skip_damaged,
    )
    print(table(report), end="")
    images, captions = report["total"]["images"], report["total"]["captions"]
    state = "complete" if worked else "was complete already"
    print(f"{settings.output}: {state}, {images['kept']} images with {captions['kept']} captions")


if __name__ == "__main__":
    run_main(main)
