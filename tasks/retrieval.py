"""Image-text retrieval: fine-tune and evaluate, or only evaluate a checkpoint.

deepspeed tasks/retrieval.py --config configs/flickr.yaml
python tasks/retrieval.py --config configs/flickr.yaml --evaluate --set init.checkpoint=runs/flickr/best.safetensors
python tasks/retrieval.py --config configs/flickr.yaml --zero-shot mscoco.pth   (fine-tuned on another data set)
"""

from pela_vl.base.errors import run_main


def main() -> None:
    from pela_vl.training.runner import run_task
    from pela_vl.workloads.retrieval import Retrieval

    run_task(Retrieval(), __doc__)


if __name__ == "__main__":
    run_main(main)
