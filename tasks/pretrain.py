"""Intermediate pre-training (PELA), or ALBEF's own pre-training.

deepspeed tasks/pretrain.py --config configs/pretrain.yaml
python tasks/pretrain.py --config configs/demo/pretrain.yaml --set train.steps=100
"""

from pela_vl.base.errors import UserError, run_main


def main() -> None:
    from pela_vl.training.runner import parse, train
    from pela_vl.workloads.pretraining import Pretraining

    arguments = parse(__doc__)
    if arguments.evaluate:
        raise UserError("--evaluate belongs to tasks/retrieval.py, which evaluates pre-trained checkpoints too")
    train(Pretraining(), arguments.settings, arguments.resume)


if __name__ == "__main__":
    run_main(main)
