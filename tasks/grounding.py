"""Weakly supervised grounding: fine-tune on image-text pairs and locate expressions by Grad-CAM, or only evaluate.

deepspeed tasks/grounding.py --config configs/refcoco_plus.yaml
python tasks/grounding.py --config configs/refcoco_plus.yaml --evaluate --set init.checkpoint=refcoco.pth
"""

from pela_vl.base.errors import run_main


def main() -> None:
    from pela_vl.training.runner import run_task
    from pela_vl.workloads.grounding import Grounding

    run_task(Grounding(), __doc__)


if __name__ == "__main__":
    run_main(main)
