"""The VQA leaderboard file: answers to every question of an official question file, or a check of a file made elsewhere.

deepspeed tasks/vqa_submission.py --config configs/vqa.yaml --set init.checkpoint=runs/vqa/last.safetensors \\
    --questions data/raw/vqa/v2_OpenEnded_mscoco_test2015_questions.json --output vqa_OpenEnded_mscoco_test2015_pela_results.json
python tasks/vqa_submission.py --questions v2_OpenEnded_mscoco_test-dev2015_questions.json --check results.json

Killed in the middle, the same command goes on. With --annotations, --check also prints the accuracy.
"""

import argparse
from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="the official v2_OpenEnded_*_questions.json")
    parser.add_argument(
        "--check", type=Path, metavar="RESULTS", help="only check this result file against the questions"
    )
    parser.add_argument(
        "--annotations", type=Path, help="with --check: official v2_*_annotations.json, for the accuracy"
    )
    parser.add_argument("--config", help="YAML file, as configs/vqa.yaml")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change any key of the config"
    )
    parser.add_argument("--output", type=Path, help="the result file to write")
    parser.add_argument("--image-pattern", help="where an image lies below data.image_root: {subset}/{image_id}.jpg")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.check:
        check(args.check, args.questions, args.annotations)
        return
    if not args.config or not args.output:
        raise UserError("give --config and --output to make a result file, or --check to check one")
    from pela_vl.base import config
    from pela_vl.base.distributed import is_main
    from pela_vl.deploy.submission import submit
    from pela_vl.settings import Settings

    count = submit(config.load(Settings, args.config, args.set), args.questions, args.output, args.image_pattern)
    if is_main():
        print(f"{args.output}: {count} questions, each answered once")


def check(results: Path, questions: Path, annotations: Path | None) -> None:
    """Print that a result file is valid, or raise UserError saying why not."""
    from pela_vl.data.sets.vqa_official import paired, read_annotations, read_questions
    from pela_vl.data.sets.vqa_results import read_results
    from pela_vl.metrics.vqa_accuracy import Truth, vqa_accuracy

    file = read_questions(questions)
    answers = read_results(results, file.ids)
    print(f"{results}: {len(answers)} questions of {questions.name}, each answered once")
    if file.data_type == "mscoco" and file.data_subtype.startswith("test-dev"):
        print(
            "not for the server: it wants the answers to all of test2015, also for test-dev; check against its questions"
        )
    if annotations:
        pairs = paired(file, annotations, read_annotations(annotations))
        truths = [Truth(said.answers, said.answer_type, said.question_type) for _, said in pairs]
        result = vqa_accuracy([answers[question.question_id] for question, _ in pairs], truths)
        print(
            f"accuracy {result['overall']:.2f}  "
            + "  ".join(f"{k} {v:.2f}" for k, v in result["per_answer_type"].items())
        )


if __name__ == "__main__":
    run_main(main)
