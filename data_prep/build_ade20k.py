"""Make lists of images with label images for segmentation: ADE20K, CamVid, or any two folders that pair.

Examples: python data_prep/build_ade20k.py --ade ADEChallengeData2016.zip --output data/ade20k
    python data_prep/build_ade20k.py --camvid CamVid --output data/camvid
    python data_prep/build_ade20k.py --images photos --labels masks --ignore 0 --names wall floor --output data/mine

No image is copied, but a zip file is unpacked. data.image_root is the folder that is printed.
"""

from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.data.public.segmentation import find_ade, find_broken, find_camvid, find_pairs, unpack_ade, write_found


def main() -> None:
    parser = script_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ade", type=Path, help="ADEChallengeData2016.zip, or the folder that it was unpacked to")
    source.add_argument("--camvid", type=Path, help="CamVid's folder with train/, trainannot/ and so on")
    source.add_argument("--images", type=Path, help="any folder of images; wants --labels")
    parser.add_argument("--labels", type=Path, help="folder of label images with the images' names")
    parser.add_argument("--suffix", default="", help="what a label image's name has after the image's, such as _P")
    parser.add_argument("--names", nargs="+", default=[], help="of the classes, in the order of their values")
    parser.add_argument("--ignore", nargs="+", type=int, default=[], help="values of unlabelled pixels")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--partial", action="store_true", help="take a part of ADE20K, whatever its counts")
    parser.add_argument("--decode", action="store_true", help="read every image and label image once")
    args = parser.parse_args()
    if (args.images is None) != (args.labels is None):
        raise UserError("--images and --labels go together")
    if args.ade is not None:
        folder = unpack_ade(args.ade, args.output) if args.ade.is_file() else args.ade
        name, found = "ade20k", find_ade(folder, args.partial)
    elif args.camvid is not None:
        name, found = "camvid", find_camvid(args.camvid)
    else:
        name, found = "own", find_pairs(args.images, args.labels, args.suffix, args.names, args.ignore)
    broken = find_broken(found) if args.decode else []
    if broken:
        raise UserError(f"{len(broken)} pairs cannot be used: {'; '.join(broken[:3])}")
    paths = write_found(found, args.output, name)
    for split, pairs in found.splits.items():
        print(f"{split:<5} {len(pairs):>7,} images  {paths[split]}")
    print(f"{len(found.values.classes)} classes  {paths['classes']}")
    print(f"data.image_root={found.root}")


if __name__ == "__main__":
    run_main(main)
