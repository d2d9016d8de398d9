"""Make the retrieval lists from a Karpathy split file.

Example: python data_prep/build_retrieval.py --karpathy data/raw/coco/dataset_coco.json --image-root data/raw/coco \\
    --output data/coco --name coco
"""

from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.data.public.karpathy import PUBLISHED, SPLITS, read_karpathy, write_lists


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--karpathy", type=Path, required=True, help="dataset_flickr30k.json, dataset_coco.json or alike"
    )
    parser.add_argument("--image-root", type=Path, required=True, help="folder that the file's image paths start from")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument(
        "--name",
        required=True,
        help="first part of the lists' names, as flickr, coco or scenes; flickr and coco are counted against the published numbers",
    )
    parser.add_argument("--skip-missing", action="store_true", help="leave out and count images that are absent")
    args = parser.parse_args()
    if not args.name or "/" in args.name:
        raise UserError(f"--name {args.name!r}: is the first part of file names; give a plain word")
    images = read_karpathy(args.karpathy, args.image_root)
    report = write_lists(images, args.image_root, args.output, args.name, args.skip_missing)
    published = PUBLISHED.get(args.name)
    for split in SPLITS:
        line = f"{split:<5} {report.images[split]:>7} images {report.captions[split]:>7} captions"
        if published:
            known, found = published[split], (report.images[split], report.captions[split])
            line += f"   published: {known[0]} images {known[1]} captions{'' if known == found else '  (differs)'}"
        if report.missing[split]:
            line += f"   left out, absent: {report.missing[split]}"
        print(line)
    if report.wordless:
        print(f"captions without a word, left out: {report.wordless}")
    if report.uncaptioned:
        print(f"images with no other caption, left out: {report.uncaptioned}")
    for path in report.files:
        print(path)


if __name__ == "__main__":
    run_main(main)
