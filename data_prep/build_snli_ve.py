"""Make the entailment lists from SNLI-VE's jsonl files, in the format that ALBEF published.

Example: python data_prep/build_snli_ve.py --source data/raw/snli_ve --image-root data/raw/flickr/images \\
    --output data/snli_ve
"""

from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.data.public.snli_ve import LABELS, PUBLISHED, SPLITS, read_snli_ve, shared_images, write_lists


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="folder of snli_ve_train.jsonl, snli_ve_dev.jsonl, snli_ve_test.jsonl",
    )
    parser.add_argument("--image-root", type=Path, required=True, help="folder of Flickr30K's images")
    parser.add_argument(
        "--image-pattern",
        default="{id}.jpg",
        help="where an image lies below the image root: {id} is its Flickr id, {split} train, val or test (default %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--name", default="snli_ve", help="first part of the lists' names (default %(default)s)")
    parser.add_argument("--skip-missing", action="store_true", help="leave out and count pairs whose image is absent")
    args = parser.parse_args()
    if not args.name or "/" in args.name:
        raise UserError(f"--name {args.name!r}: is the first part of file names; give a plain word")
    if "{id}" not in args.image_pattern:
        raise UserError(f"--image-pattern {args.image_pattern!r}: has no {{id}}; write it as in {{id}}.jpg")
    splits = {}
    for split in SPLITS:
        pattern = args.image_pattern.replace("{split}", "val" if split == "dev" else split)
        splits[split] = read_snli_ve(args.source / f"snli_ve_{split}.jsonl", args.image_root, pattern)
    reports = write_lists(splits, args.image_root, args.output, args.name, args.skip_missing)
    for split, report in reports.items():
        known = PUBLISHED[split]
        same = (report.pairs, report.images) == (known["pairs"], known["images"])
        line = f"{split:<5} {report.pairs:>6} pairs {report.images:>5} images"
        line += f"   published: {known['pairs']} pairs, {known['images']} images{'' if same else '  (differs)'}"
        for what, count in (
            ("without a gold label", splits[split].unlabelled),
            ("without a word", splits[split].wordless),
            ("image absent", report.missing),
        ):
            line += f"   left out, {what}: {count}" if count else ""
        print(line)
        print("      " + ", ".join(f"{label} {report.labels[label]}" for label in LABELS))
    for (a, b), count in shared_images(splits).items():
        print(f"warning: {a} and {b} share {count} images")
    for report in reports.values():
        print(report.file)


if __name__ == "__main__":
    run_main(main)
