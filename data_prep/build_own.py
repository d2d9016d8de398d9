"""Make the retrieval lists from your own images and a CSV or TSV table of captions.

Example: python data_prep/build_own.py --csv captions.csv --image-root photos --output data/own
The table's first line is image,caption; an image with several captions has several rows. The split into training, validation
and test images depends on the images alone.
"""

from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.data.public.karpathy import SPLITS, write_lists
from pela_vl.data.public.own import check_images, read_table, split_images


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--csv", type=Path, required=True, help="table with the columns image and caption")
    parser.add_argument("--image-root", type=Path, required=True, help="folder that the table's paths start from")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--name", default="own", help="first part of the lists' names (default %(default)s)")
    parser.add_argument("--val", type=float, default=0.1, help="share of images to validate on (default %(default)s)")
    parser.add_argument("--test", type=float, default=0.1, help="share of images to test on (default %(default)s)")
    parser.add_argument("--delimiter", help="what separates the columns (default a comma in a .csv file, else a tab)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count rows and images of no use")
    args = parser.parse_args()
    if not args.name or "/" in args.name:
        raise UserError(f"--name {args.name!r}: is the first part of file names; give a plain word")
    if args.delimiter is not None and len(args.delimiter) != 1:
        raise UserError(f"--delimiter {args.delimiter!r}: give one character")
    if not (args.val > 0 and args.test > 0 and args.val + args.test < 1):
        raise UserError(f"--val {args.val:g} --test {args.test:g}: want shares above 0 that leave images to train on")
    table = read_table(args.csv, args.image_root, args.delimiter, args.skip_bad)
    digests = check_images(table, args.image_root, args.skip_bad)
    images, copies = split_images(table, digests, args.val, args.test)
    report = write_lists(images, args.image_root, args.output, args.name)
    for split in SPLITS:
        print(f"{split:<5} {report.images[split]:>6} images {report.captions[split]:>6} captions")
    used = sum(report.captions.values())
    if used != table.rows:
        print(f"{table.rows} rows in the table, {used} of them used")
    if copies:
        print(f"{copies} images are copies of others; copies stay in one split")
    for place, reason in table.bad[:20]:
        print(f"left out: {place}: {reason}")
    if len(table.bad) > 20:
        print(f"left out: {len(table.bad) - 20} more")
    for path in report.files:
        print(path)


if __name__ == "__main__":
    run_main(main)
