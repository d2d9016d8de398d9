"""Visual question answering: fine-tune and evaluate, or only evaluate a checkpoint.

deepspeed tasks/vqa.py --config configs/vqa.yaml
python tasks/vqa.py --config configs/vqa.yaml --evaluate --set init.checkpoint=vqa.pth data.test=data/vqa/lists/vqa_val.json

The predictions are written in the official result format. For the leaderboard see tasks/vqa_submission.py.
"""

from pela_vl.base.errors import run_main


def main() -> None:
    from pela_vl.training.runner import run_task
    from pela_vl.workloads.vqa import Vqa

    run_task(Vqa(), __doc__)


if __name__ == "__main__":
    run_main(main)
