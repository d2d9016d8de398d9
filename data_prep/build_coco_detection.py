"""Lay COCO 2017's instances out for tasks/detect.py: train.json, val.json and a link to the images, whose counts are checked.

Example: python data_prep/build_coco_detection.py --images data/raw/coco --annotations data/raw/coco/annotations
    --output data/coco_detection
--images holds train2017/ and val2017/, --annotations instances_train2017.json and instances_val2017.json. Crowds stay in the
files: they are not learned, and what is found in them counts neither way, as in COCO's evaluation.
--photographs takes a folder of photographs with boxes instead, such as ../shared/data/coco_ccby_small; train on these with
detection.masks=false.
"""

from pathlib import Path

from pela_vl.base.build_folder import alone, claim_folder
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_json
from pela_vl.base.script import script_parser
from pela_vl.data.json_files import read_json
from pela_vl.data.public.coco_detection import from_photographs, gather, show

MANIFEST, STARTED = "detection.json", ".detection.json"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--images", type=Path, help="folder of train2017/ and val2017/")
    parser.add_argument(
        "--annotations", type=Path, help="folder of instances_train2017.json and instances_val2017.json"
    )
    parser.add_argument("--photographs", type=Path, help="a folder with annotations.json and its images, instead")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.json, val.json and images")
    parser.add_argument("--partial", action="store_true", help="take another set in COCO's layout, whatever its counts")
    parser.add_argument("--test", type=int, default=16, help="photographs in val.json (default %(default)s)")
    args = parser.parse_args()
    if (args.photographs is None) != bool(args.images and args.annotations):
        raise UserError("give --images and --annotations, or --photographs")
    request = {name: str(value) for name, value in vars(args).items() if name not in ("output", "partial")}
    with alone(args.output):
        if claim_folder(args.output, request, "detection set", MANIFEST, STARTED):
            if args.photographs is None:
                counts = gather(args.images, args.annotations, args.output, args.partial)
            else:
                counts = from_photographs(args.photographs, args.output, args.test)
            atomic_json(args.output / MANIFEST, {"request": request, "counts": counts})
            (args.output / STARTED).unlink()
        else:
            counts = read_json(args.output / MANIFEST)["counts"]
            print(f"{args.output}: was complete already")
    for split, own in counts.items():
        print(f"{split:<5} {show(own)}  {args.output / split}.json")


if __name__ == "__main__":
    run_main(main)
