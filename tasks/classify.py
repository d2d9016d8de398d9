"""Image classification: PELA's pre-training stage, fine-tuning, or only evaluation of a checkpoint.

deepspeed tasks/classify.py --config configs/vision/deit_base.yaml
python tasks/classify.py --config configs/vision/deit_base.yaml --evaluate --set init.checkpoint=runs/deit_base/best.safetensors

Beside top-1, top-5 and the share of each class it writes the predictions and a drawing of the classes recognised worst.
"""

from pela_vl.base.errors import run_main


def main() -> None:
    from pela_vl.training.runner import run_task
    from pela_vl.workloads.classification import Classification

    run_task(Classification(), __doc__)


if __name__ == "__main__":
    run_main(main)
