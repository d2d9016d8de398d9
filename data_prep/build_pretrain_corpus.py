"""Build the pre-training corpus from public raw files: filtered, deduplicated, checked against test sets, reported.

Example: COCO and Conceptual Captions as img2dataset wrote them, without COCO's and Flickr30K's test pictures, as shards:
  python data_prep/build_pretrain_corpus.py --output data/corpus --shards \\
      --coco annotations/captions_train2014.json train2014 --cc3m-train cc3m \\
      --held-out-karpathy dataset_coco.json coco --held-out-karpathy dataset_flickr30k.json flickr30k-images
Run it again after an interruption to go on. docs/corpus.md tells formats, filters and reasons.
"""

import argparse
import os
import re
from dataclasses import fields, replace
from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.data.corpus import FILTERS, Filters, Request, Shards, build_corpus
from pela_vl.data.corpus.engines import ENGINES
from pela_vl.data.corpus.report import table
from pela_vl.data.corpus.units import SOURCES, Unit, held_out_units, source_units

_PAIRS = "TABLE and IMAGES (TSV or CSV of address and caption, and its pictures), or the FOLDER img2dataset wrote"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the corpus")
    sources = parser.add_argument_group("sources, each as often as wanted; they enter in this order")
    many = {"nargs": "+", "action": "append", "default": []}
    sources.add_argument("--coco", metavar="PATH", **many, help="ANNOTATIONS (COCO captions JSON) and IMAGES")
    sources.add_argument("--vg", metavar="PATH", **many, help="region_descriptions.json, IMAGES and image_data.json")
    for name in SOURCES[2:]:
        sources.add_argument(f"--{name.replace('_', '-')}", metavar="PATH", **many, help=_PAIRS)
    sources.add_argument("--pairs", metavar="X", **many, help=f"own data: a NAME, then {_PAIRS}")
    leak = parser.add_argument_group("pictures that must not enter: FILE, then the folder of its pictures if at hand")
    leak.add_argument("--held-out-karpathy", metavar="PATH", **many, help="val and test of a Karpathy JSON")
    leak.add_argument("--held-out-refs", metavar="PATH", **many, help="val, testA, testB of refs(unc).p")
    leak.add_argument("--held-out-vqa", metavar="PATH", **many, help="all pictures of a VQA v2 questions JSON")
    leak.add_argument("--held-out-images", metavar="FOLDER", **many, help="every picture below a folder, by content")
    parser.add_argument("--filter", metavar="[SOURCE.]NAME=VALUE", action="append", default=[],
                        help=f"change a filter of one or all sources; names: {', '.join(_NUMBERS)}")  # fmt: skip
    parser.add_argument("--shards", action="store_true", help="write tar shards, pictures resized, not JSON lists")
    parser.add_argument("--image-size", type=int, help="shards: shorter side in pixels (default 256)")
    parser.add_argument("--shard-samples", type=int, help="shards: pictures in each (default 5000)")
    parser.add_argument("--quality", type=int, help="shards: of the JPEGs (default 95)")
    parser.add_argument("--image-root", help="lists: folder where their paths start (default: the deepest common one)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="a pool of processes here, or Ray")
    parser.add_argument("--ray-address", help="of a running Ray cluster (default: one is started here)")
    return parser


_NUMBERS = {item.name: item.type for item in fields(Filters)}


def main() -> None:
    args = _parser().parse_args()
    request = _request(args)
    if not request.held_out:
        print("no --held-out-... given: pictures of test sets may be in the corpus")
    report, worked = build_corpus(request, args.output, args.workers, args.engine, args.ray_address)
    print(table(report), end="")
    state = "complete" if worked else "was complete already"
    pictures, captions = report["total"]["pictures"], report["total"]["captions"]
    print(f"{args.output}: {state}, {pictures['kept']} pictures with {captions['kept']} captions")


def _request(args: argparse.Namespace) -> Request:
    units: list[Unit] = []
    for name in SOURCES:
        kind = name if name in ("coco", "vg") else "pairs"
        for part, paths in enumerate(getattr(args, name), 1):
            units += source_units(name, kind, paths, part)
    for place, (name, *paths) in enumerate(args.pairs):
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in (*SOURCES, "report", "index") or not paths:
            raise UserError(f"--pairs {name}: wants a new name of a-z, 0-9 and _, then paths")
        part = 1 + sum(other[0] == name for other in args.pairs[:place])
        units += source_units(name, "pairs", paths, part)
    held_out = [
        unit
        for kind in ("karpathy", "refs", "vqa", "images")
        for paths in getattr(args, f"held_out_{kind}")
        for unit in held_out_units(kind, paths)
    ]
    names = {unit.source: FILTERS.get(unit.source, Filters()) for unit in units}
    return Request(tuple(units), tuple(held_out), _filters(args.filter, names), _shards(args), _image_root(args, units))


def _filters(changes: list[str], filters: dict[str, Filters]) -> dict[str, Filters]:
    for change in changes:
        match = re.fullmatch(r"(?:(\w+)\.)?(\w+)=([0-9.]+)", change)
        if not match or match[2] not in _NUMBERS or match[1] not in (None, *filters):
            raise UserError(
                f"--filter {change}: wants [SOURCE.]NAME=VALUE, NAME of {', '.join(_NUMBERS)}, SOURCE given"
            )
        try:
            value = _NUMBERS[match[2]](match[3])
        except ValueError:
            raise UserError(f"--filter {change}: {match[3]} is no {_NUMBERS[match[2]].__name__}") from None
        filters |= {
            name: replace(old, **{match[2]: value}) for name, old in filters.items() if match[1] in (None, name)
        }
    return filters


def _shards(args: argparse.Namespace) -> Shards | None:
    values = {"image_size": args.image_size, "samples": args.shard_samples, "quality": args.quality}
    given = {name: value for name, value in values.items() if value is not None}
    if given and not args.shards:
        raise UserError("--image-size, --shard-samples and --quality are of --shards; JSON lists copy no picture")
    return Shards(**given) if args.shards else None


def _image_root(args: argparse.Namespace, units: list[Unit]) -> str | None:
    if args.shards or not units:
        return None
    folders = [unit.images for unit in units]
    return os.path.abspath(args.image_root) if args.image_root else os.path.commonpath(folders)


if __name__ == "__main__":
    run_main(main)
