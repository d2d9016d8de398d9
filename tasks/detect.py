"""Object detection with Cascade Mask R-CNN: fine-tuning of a dense or low-rank Swin, or only evaluation of a checkpoint.

deepspeed tasks/detect.py --config configs/vision/cascade_swin_base.yaml --set init.checkpoint=runs/swin_base/last.safetensors
python tasks/detect.py --config configs/vision/cascade_swin_base.yaml --evaluate --set init.checkpoint=best.safetensors

Beside COCO's box and mask AP it writes the detections in COCO's form and images with true and found objects.
"""

from pela_vl.base.errors import run_main


def main() -> None:
    from pela_vl.training.runner import run_task
    from pela_vl.workloads.detection import Detection

    run_task(Detection(), __doc__)


if __name__ == "__main__":
    run_main(main)
