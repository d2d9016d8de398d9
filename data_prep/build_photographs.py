"""Make retrieval lists from a small folder of photographs with captions, for trying the real path by hand.

The folder holds annotations.json, a list of {"image": path below the folder, "image_id": number, "caption": [texts]};
other fields are left out. Every image goes to one list. No image is copied: data.image_root is the folder itself.

Example: python data_prep/build_photographs.py --source ../shared/data/coco_ccby_small --output data/photographs
"""

import os
from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.files import atomic_json
from pela_vl.base.script import script_parser
from pela_vl.data.paths import resolve
from pela_vl.data.sets.captions import load_annotations


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with annotations.json and the images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--test", type=int, default=16, help="images to test on, evenly spread (default 16)")
    parser.add_argument("--val", type=int, default=0, help="images to validate on, likewise (default none, no list)")
    args = parser.parse_args()
    fields = {"image": (str,), "image_id": (int, str), "caption": (list,)}
    entries = load_annotations([args.source / "annotations.json"], fields)
    for entry in entries:
        path = resolve(args.source, entry.values["image"])
        if not os.path.isfile(path):
            raise UserError(f"{entry.place}: field 'image': {path}: no such file")
    held_out = args.test + args.val
    if args.test < 1 or args.val < 0 or held_out >= len(entries):
        raise UserError(
            f"--test {args.test} --val {args.val}: want 1 or more and 0 or more, below {len(entries)} in all"
        )
    chosen = [i * len(entries) // held_out for i in range(held_out)]
    # validation images are spread among the held-out ones in turn
    val = {chosen[i * held_out // args.val] for i in range(args.val)}
    splits = {"train": set(range(len(entries))) - set(chosen), "val": val, "test": set(chosen) - val}
    for split, members in splits.items():
        if members:
            path = args.output / f"photographs_{split}.json"
            atomic_json(path, [entry.values for i, entry in enumerate(entries) if i in members])
            captions = sum(len(entries[i].values["caption"]) for i in members)
            print(f"{split:<5} {len(members):>4} images {captions:>5} captions  {path}")


if __name__ == "__main__":
    run_main(main)
