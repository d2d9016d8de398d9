"""Image-text retrieval: fine-tune and evaluate, or with --evaluate only evaluate init.checkpoint (also zero-shot).

deepspeed tasks/retrieval.py --config configs/flickr.yaml
python tasks/retrieval.py --config configs/flickr.yaml --evaluate --set init.checkpoint=runs/flickr/best.safetensors
"""

from pela_vl.errors import run_main


def main() -> None:
    from pela_vl.runner import evaluate_retrieval, parse, train_retrieval

    arguments = parse(__doc__)
    if arguments.evaluate:
        evaluate_retrieval(arguments.settings)
    else:
        train_retrieval(arguments.settings, arguments.resume)


if __name__ == "__main__":
    run_main(main)
