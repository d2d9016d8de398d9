"""Make the grounding lists of RefCOCO+ from refs(unc).p, instances.json and detected boxes.

python data_prep/build_refcoco_plus.py --refs 'data/raw/refcoco+/refs(unc).p' --instances data/raw/refcoco+/instances.json \\
    --detections data/raw/refcoco+/dets.json --image-root data/raw/coco --image-folder train2014 --output data/refcoco+
"""

from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.data.public.refcoco import PUBLISHED, SPLITS, read_corpus, write_lists


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--refs", type=Path, required=True, help="refs(unc).p of REFER; read without running its code")
    parser.add_argument("--instances", type=Path, required=True, help="instances.json that lies beside it")
    parser.add_argument("--detections", type=Path, help="MAttNet's detections, as it or as ALBEF published them")
    parser.add_argument("--image-root", type=Path, required=True, help="folder that the lists' image paths start from")
    parser.add_argument("--image-folder", default="", help="folder below it that holds the images, as train2014")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--name", default="refcoco+", help="first part of the lists' names (refcoco+)")
    parser.add_argument("--skip-missing", action="store_true", help="leave out and count objects of absent images")
    args = parser.parse_args()
    if not args.name or "/" in args.name:
        raise UserError(f"--name {args.name!r}: is the first part of file names; give a plain word")
    corpus = read_corpus(args.refs, args.instances, args.image_root, args.image_folder, args.detections)
    report = write_lists(corpus, args.image_root, args.output, args.name, args.skip_missing)
    published = PUBLISHED.get(args.name)
    for split in SPLITS:
        objects, expressions = report.counts[split]
        line = f"{split:<5} {objects:>7} objects {expressions:>8} expressions"
        if published:
            same = "" if published[split] == (objects, expressions) else "  (differs)"
            line += "   published: {} objects {} expressions".format(*published[split]) + same
        if report.missing[split]:
            line += f"   left out, image absent: {report.missing[split]}"
        print(line)
    if args.detections:
        print(f"candidate boxes: detections of {args.detections}")
    else:
        print(
            "candidate boxes: the objects of instances.json, as no --detections are given; accuracies are not comparable"
        )
    if corpus.without_area:
        print(f"candidate boxes without area, left out: {corpus.without_area}")
    if corpus.wordless:
        print(f"expressions without a word, left out: {corpus.wordless}")
    if corpus.unnamed:
        print(f"objects with no other expression, left out: {corpus.unnamed}")
    if report.without_candidates:
        print(f"held-out images without a candidate box: {report.without_candidates}; their expressions count as wrong")
    for path in report.files:
        print(path)


if __name__ == "__main__":
    run_main(main)
