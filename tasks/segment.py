"""Semantic segmentation with UperNet: fine-tuning on a dense or low-rank backbone, or only evaluation of a checkpoint.

deepspeed tasks/segment.py --config configs/vision/upernet_deit_base.yaml
python tasks/segment.py --config configs/vision/upernet_deit_base.yaml --evaluate --set init.checkpoint=UPERNET.safetensors
Evaluation shows the model whole images; segmentation.mode=slide shows it windows of a crop's size.

Beside mIoU, mAcc, aAcc and the IoU of each class it writes the predicted label images, and some of them in colours beside
the truth.
"""

from pela_vl.base.errors import run_main


def main() -> None:
    from pela_vl.training.runner import run_task
    from pela_vl.workloads.segmentation import Segmentation

    run_task(Segmentation(), __doc__)


if __name__ == "__main__":
    run_main(main)
