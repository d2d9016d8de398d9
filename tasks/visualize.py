"""Where a model looks for each word: a Grad-CAM figure as PNG, and how well image and text match.

python tasks/visualize.py --image x.jpg --text "a red kite over the sea" --checkpoint ALBEF_4M.pth --output out.png
"""

from pathlib import Path

from pela_vl.base.errors import UserError, run_main
from pela_vl.base.script import script_parser


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--checkpoint", required=True, help="ours, dense or low rank, or a published one")
    parser.add_argument("--output", type=Path, required=True, help="the figure, a PNG file")
    parser.add_argument(
        "--layer", type=int, help="text layer of the cross-attention (the third fusion layer: 8 in ALBEF)"
    )
    parser.add_argument("--tokenizer", help="vocabulary by name or folder; default: the checkpoint's")
    parser.add_argument("--image-size", type=int, help="pixels a side for the model; default: the checkpoint's")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output}: the figure is a PNG file; end its name in .png")
    from pela_vl.base.distributed import choose_device
    from pela_vl.base.files import atomic_write
    from pela_vl.checkpoints.albef import load_model
    from pela_vl.data.tokenizer import Tokenizer
    from pela_vl.deploy.visualise import figure, look
    from pela_vl.settings import ModelSettings

    settings = ModelSettings(image_size=args.image_size, tokenizer=args.tokenizer)
    loaded = load_model(settings, args.checkpoint, mlm=False)
    model = loaded.model.to(choose_device(args.device)).eval()
    seen = look(model, Tokenizer.load(loaded.header.tokenizer), args.image, args.text, args.layer)
    with atomic_write(args.output) as file:
        figure(seen).save(file, format="PNG")
    print(f"match {seen.match:.4f}  (ITM: probability that image and text belong together)")
    print(f"similarity {seen.similarity:.4f}  (ITC: cosine, -1 to 1)")
    print(args.output)


if __name__ == "__main__":
    run_main(main)
