"""`python -m pela_vl`: the commands of the repository, and where its documentation is."""

from importlib.metadata import version
from pathlib import Path

_COMMANDS = """\
the whole method on built-in data     make demo
pre-training corpus                   python data_prep/build_pretrain_corpus.py
compress a checkpoint                 python tasks/compress.py --checkpoint ALBEF_4M.pth --output albef_4m_k3.safetensors
PELA's pre-training                   deepspeed tasks/pretrain.py --config configs/pretrain.yaml
retrieval                             deepspeed tasks/retrieval.py --config configs/flickr.yaml
visual entailment                     deepspeed tasks/entailment.py --config configs/snli_ve.yaml
grounding                             deepspeed tasks/grounding.py --config configs/refcoco_plus.yaml
question answering                    deepspeed tasks/vqa.py --config configs/vqa.yaml
VQA leaderboard file                  python tasks/vqa_submission.py --help
image classification                  deepspeed tasks/classify.py --config configs/vision/deit_base.yaml
segmentation                          deepspeed tasks/segment.py --config configs/vision/upernet_deit_base.yaml
object detection                      deepspeed tasks/detect.py --config configs/vision/cascade_swin_base.yaml
your own images and captions          python tasks/retrieval.py --config configs/own.yaml
export to ONNX or torch               python tasks/export.py --help
where a model looks                   python tasks/visualize.py --help
parameters and operations             python tasks/efficiency.py
the paper's tables                    python tasks/reproduce.py --help
in Python                             pela_vl.compress(model, kappa=3)"""


def main() -> None:
    """Print the commands, and the folder of the documentation or what takes its place."""
    root = Path(__file__).resolve().parents[1]
    print(f"pela_vl {version('pela_vl')}: large pre-trained Transformers made small before fine-tuning\n")
    print(_COMMANDS)
    if (root / "docs" / "index.md").exists():
        print(f"\nDocumentation: {root / 'docs' / 'index.md'}; as a site: make docs")
    else:
        print("\nThe scripts, configurations and documentation are in the repository, not in the installed package.")


if __name__ == "__main__":
    main()
