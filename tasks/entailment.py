"""Visual entailment (SNLI-VE): fine-tune and evaluate, or only evaluate a checkpoint.

deepspeed tasks/entailment.py --config configs/snli_ve.yaml
python tasks/entailment.py --config configs/snli_ve.yaml --evaluate --set init.checkpoint=runs/snli_ve/best.safetensors

Beside the accuracies it writes the predictions and a confusion matrix (PNG) of the validation and the test set.
"""

from pela_vl.base.errors import run_main


def main() -> None:
    from pela_vl.training.runner import run_task
    from pela_vl.workloads.entailment import Entailment

    run_task(Entailment(), __doc__)


if __name__ == "__main__":
    run_main(main)
