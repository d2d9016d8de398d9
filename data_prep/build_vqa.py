"""Make the question answering lists from VQA v2's official files and, where given, Visual Genome's.

Writes vqa_train.json, vqa_val.json, vqa_test.json, vqa_test_dev.json (of those found), vg_qa.json and answer_list.json.

Example: python data_prep/build_vqa.py --raw data/raw/vqa --image-root data/raw/coco --output data/vqa \\
    --genome data/raw/vg/question_answers.json --genome-root data/raw/vg
"""

from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser
from pela_vl.data.public.vqa_lists import (
    MIN_COUNT,
    PUBLISHED,
    ROLES,
    answer_list,
    find_parts,
    genome_entries,
    of_types,
    read_part,
    without_images,
)
from pela_vl.data.raw import write_list
from pela_vl.data.sets.vqa_official import read_answer_list, read_genome, read_questions


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--raw", type=Path, required=True, help="folder with v2_OpenEnded_*_questions.json and v2_*_annotations.json"
    )
    parser.add_argument("--image-root", type=Path, required=True, help="folder with train2014, val2014 and test2015")
    parser.add_argument("--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument(
        "--parts", nargs="+", choices=ROLES, help="build these alone (default: all whose files are there)"
    )
    parser.add_argument(
        "--question-types",
        nargs="+",
        metavar="TYPE",
        help='questions of these types alone, such as "what color is the"',
    )
    parser.add_argument("--answer-list", type=Path, help="a published answer_list.json, taken as it is")
    parser.add_argument(
        "--min-count",
        type=int,
        default=MIN_COUNT,
        help="questions of train and val that an answer needs (default %(default)s)",
    )
    parser.add_argument("--genome", type=Path, help="Visual Genome's question_answers.json")
    parser.add_argument("--genome-root", type=Path, help="folder with VG_100K and VG_100K_2, or with all images")
    parser.add_argument("--genome-listed", action="store_true", help="keep only answers that are in the answer list")
    parser.add_argument(
        "--genome-without-val", type=Path, metavar="IMAGE_DATA", help="Visual Genome's image_data.json: leave out the images "
        "that val asks about, so that val stays unseen"
    )  # fmt: skip
    parser.add_argument(
        "--image-pattern", help="where an image lies below the root, for data of your own: {subset}/{image_id}.jpg"
    )
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out and count training questions without image"
    )
    args = parser.parse_args()
    if (args.genome is None) != (args.genome_root is None):
        raise UserError("--genome and --genome-root belong together: give both or none")
    if args.min_count < 1:
        raise UserError(f"--min-count {args.min_count}: an answer needs at least one question")
    parts = find_parts(args.raw, args.parts)
    official = "_mscoco_" in parts[0].questions.name
    lists, lines = {}, []
    for part in parts:
        held = read_part(part, args.image_root, args.image_pattern, args.skip_missing)
        held = of_types(held, args.question_types) if args.question_types else held
        lists[part.role] = held
        line = counted(part.role, len(held.entries), official, f"questions {held.images:>7} images")
        lines.append(line + (f"   left out, absent: {held.missing}" if held.missing else ""))
    if args.answer_list:
        answers = read_answer_list(args.answer_list)
    elif not {"train", "val"} & set(lists):
        answers = None  # nothing to count answers in: the parts asked for are tests
    else:
        answers = answer_list(
            (a for role in ("train", "val") if role in lists for a in lists[role].annotations), args.min_count
        )
    files = {f"vqa_{role}.json": held.entries for role, held in lists.items()}
    if answers is not None:
        files["answer_list.json"] = answers
        lines.append(
            counted("answers", len(answers), official, "to rank" + (" (as given)" if args.answer_list else ""))
        )
    if args.genome:
        questions = read_genome(args.genome)
        total = len(questions)
        if args.genome_without_val:
            val = next((part for part in parts if part.role == "val"), None)
            if val is None:
                raise UserError("--genome-without-val: there is no val part, so nothing to leave out")
            seen = {question.image_id for question in read_questions(val.questions).questions}
            questions = without_images(questions, args.genome_without_val, seen)
        entries, dropped = genome_entries(
            questions, args.genome_root, answers if args.genome_listed else None, args.skip_missing
        )
        dropped["image of val"] = total - len(questions)
        files["vg_qa.json"] = entries
        lines.append(counted("vg", total, True, f"questions, {len(entries)} kept"))
        lines += [f"      left out, {reason}: {count}" for reason, count in dropped.items() if count]
    for name, entries in files.items():
        write_list(args.output / name, entries)
    print(*lines, *(args.output / name for name in files), sep="\n")


def counted(name: str, count: int, compare: bool, unit: str) -> str:
    """A line of the report: a count, and beside it the published one."""
    line = f"{name:<8} {count:>8} {unit}"
    if compare:
        line += f"   published: {PUBLISHED[name]}" + ("" if PUBLISHED[name] == count else "  (differs)")
    return line


if __name__ == "__main__":
    run_main(main)
