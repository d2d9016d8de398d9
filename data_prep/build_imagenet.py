"""Lay ImageNet (ILSVRC 2012) out in a folder a class, or in tar shards, as training reads it.

Example: python data_prep/build_imagenet.py --train ILSVRC2012_img_train.tar --val ILSVRC2012_img_val.tar
    --devkit ILSVRC2012_devkit_t12.tar.gz --output data/imagenet
--train and --val take folders too, whose images are linked and not copied. --shards copies the images into a few hundred tar
files instead. Run it again after an interruption to go on.
"""

import argparse
from pathlib import Path
from typing import Any

from pela_vl.base.build_folder import alone, claim_folder
from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_json
from pela_vl.base.script import script_parser
from pela_vl.data.public import imagenet, imagenet_shards
from pela_vl.data.sets.labelled import load_labelled

MANIFEST, STARTED = "imagenet.json", ".imagenet.json"
PACKED, PACKING = "imagenet_shards.json", ".imagenet_shards.json"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--train", type=Path, required=True, help="the training tar, or a folder of classes or their tars"
    )
    parser.add_argument(
        "--val", type=Path, required=True, help="the validation tar, or a folder of its images or classes"
    )
    parser.add_argument(
        "--devkit", type=Path, help="the development kit, packed or not, or a text file with a synset an image"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for train/<class>/ and val/<class>/")
    parser.add_argument("--partial", action="store_true", help="take a part of ImageNet, whatever its counts")
    parser.add_argument("--decode", action="store_true", help="decode every image once and list those that are rotten")
    parser.add_argument(
        "--shards",
        type=int,
        nargs="?",
        const=imagenet_shards.SAMPLES,
        metavar="IMAGES",
        help="write train/ and val/ as tar shards of at most IMAGES images (%(const)s), byte for byte, with their classes",
    )
    args = parser.parse_args()
    synsets = imagenet.read_devkit(args.devkit) if args.devkit else []
    sources = {"train": str(args.train.resolve()), "val": str(args.val.resolve()), "partial": args.partial}
    request = sources | {"labels": imagenet.describe_labels(synsets)}
    if args.shards is not None:
        pack(args, synsets, sources | {"shards": args.shards})
        return
    with alone(args.output):
        train, val = args.output / "train", args.output / "val"
        # val/ appears when it is complete; until then corrected labels are welcome
        claimed = request if val.exists() else sources
        if claim_folder(args.output, claimed, "ImageNet folder", MANIFEST, STARTED):
            imagenet.unpack_train(args.train, train)
            atomic_json(args.output / STARTED, {"request": request})
            trained = imagenet.count_images(train)
            left = imagenet.unpack_val(args.val, synsets, val, trained.images if args.partial else None)
            if left:
                print(f"val   {left:>9,} images left out: their classes have no training images")
            counts = trained, imagenet.count_images(val)
            imagenet.check_counts(*counts, args.partial)
            atomic_json(
                args.output / MANIFEST,
                {
                    "request": request,
                    "classes": len(counts[0].images),
                    "images": {"train": counts[0].total, "val": counts[1].total},
                },
            )
            (args.output / STARTED).unlink()
        else:
            print(f"{args.output}: was complete already")
        for name, folder in (("train", train), ("val", val)):
            counted = imagenet.count_images(folder)
            print(f"{name:<5} {counted.total:>9,} images of {len(counted.images):,} classes  {folder}")
        if args.decode:
            show_rotten(args.output, {folder.name: imagenet.find_rotten(folder) for folder in (train, val)})


def pack(args: argparse.Namespace, synsets: list[str], sources: dict[str, Any]) -> None:
    """Write the shards of both splits.

    Args:
        args: of the command line.
        synsets: of the validation images.
        sources: all that determines the shards but `synsets`.
    """
    if args.shards < 1:
        raise UserError(f"--shards {args.shards}: a shard holds at least 1 image")
    request = sources | {"labels": imagenet.describe_labels(synsets)}
    folders = [args.output / "train", args.output / "val"]
    with alone(args.output):
        # until the first shard of val/ corrected labels are welcome
        claimed = request if folders[1].exists() else sources
        if claim_folder(args.output, claimed, "folder of ImageNet shards", PACKED, PACKING):
            try:
                train, val, left = imagenet_shards.list_splits(args.train, args.val, synsets, args.partial)
            except UserError:
                if not any(folder.exists() for folder in folders):
                    (args.output / PACKING).unlink()  # nothing was written, so that the next request may differ
                raise
            if left:
                print(f"val   {left:>9,} images left out: their classes have no training images")
            atomic_json(args.output / PACKING, {"request": request})
            for images, folder in zip((train, val), folders, strict=True):
                imagenet_shards.write_shards(images, folder, args.shards)
            counts = {folder.name: len(images) for images, folder in zip((train, val), folders, strict=True)}
            classes = len({image.label for image in train})
            atomic_json(args.output / PACKED, {"request": request, "classes": classes, "images": counts})
            (args.output / PACKING).unlink()
        else:
            print(f"{args.output}: was complete already")
        for folder in folders:
            found = load_labelled([folder])
            print(f"{folder.name:<5} {len(found.images):>9,} images of {len(found.classes):,} classes  {folder}")
        if args.decode:
            show_rotten(args.output, {folder.name: imagenet_shards.find_rotten(folder) for folder in folders})


def show_rotten(output: Path, rotten: dict[str, list[tuple[str, str]]]) -> None:
    """Write rotten.json and print the first images of each split that cannot be decoded."""
    atomic_json(output / "rotten.json", rotten)
    for split, found in rotten.items():
        print(f"{split:<5} {len(found)} images cannot be decoded; training passes over them")
        for path, reason in found[:20]:
            print(f"      {path}: {reason}")


if __name__ == "__main__":
    run_main(main)
