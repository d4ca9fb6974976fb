"""distae export RUN --format FORMAT --out DIR: a model for other programs, checked against the model on random input.

distae export runs/a --format onnx --out onnx            # encode.onnx and decode.onnx
distae export runs/a --format torch_export --out graphs  # encode.pt2, ...: torch.export.load
distae export runs/a --format hf --out folder            # config.json, model.safetensors, README.md: distae.load
distae export runs/a --format sae_lens --out folder      # cfg.json, sae_weights.safetensors: SAE.load_from_disk, distae.load
distae export runs/kl_f8 --format diffusers --out folder # AutoencoderKL.from_pretrained, VQModel.from_pretrained, distae.load
distae export runs/a --format timm --out folder          # config.json, model.safetensors: timm.create_model("local-dir:folder")
"""

import json
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.errors import TrainingError, UserError
from distae.runtime.files import new_folder, write_atomically

FORMATS = ("safetensors", "onnx", "torch_export", "hf", "sae_lens", "diffusers", "timm")
TIMMS = 1e-4
"""Largest difference of features from timm's in float32, as a share of the largest value where that is above 1."""
ABOUT = (
    "Write a model to a folder, in the data's own units: safetensors, which distae.load opens; hf, the same with a model card, for "
    "the Hugging Face hub; onnx and torch_export, graphs of encode and decode for any batch size (and reconstruct, if it is more); "
    "sae_lens, a dictionary in the files of SAELens; diffusers, a tokenizer (kl, vq) as AutoencoderKL or VQModel, of images in "
    "[-1, 1], with the scaling factor of codes of training samples; timm, the encoder of masked_ae as a VisionTransformer of timm."
)


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae export") -> int:
    return serve(argv, arguments(prog), export, reads_data=False)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    parser = shared(prog, ABOUT, output="FORMAT/")
    parser.add_argument("--format", required=True, choices=FORMATS)
    return parser


def export(run: Trained) -> None:
    """Write the folder and check it. Raises UserError where the model cannot be exported."""
    kind = run.options.format
    target = run.target(kind)
    measured = _latents(run) if kind == "diffusers" else ()

    def work() -> str:
        with new_folder(target) as folder:
            return WRITERS[kind](run, folder, *measured)

    run.say(f"wrote {target}: {run.on_main(work)}")


def _model_folder(run: Trained, folder: Path) -> str:
    """model.safetensors and config.json."""
    import torch

    import distae
    from distae.models.export import samples
    from distae.models.serialization import write_saved

    write_saved(run.saved, folder)
    given = samples(run.model, 7)
    if not torch.equal(distae.load(folder).to(run.device).reconstruct(*given), run.model.reconstruct(*given)):
        raise TrainingError(f"{folder} is not the model that was written")
    return "model.safetensors and config.json, for distae.load; the same reconstructions on random input"


def _hub_folder(run: Trained, folder: Path) -> str:
    """The same and a model card."""
    said = _model_folder(run, folder)
    write_atomically(folder / "README.md", model_card(run).encode())
    return f"README.md, {said}"


def _sae_lens_folder(run: Trained, folder: Path) -> str:
    """cfg.json and sae_weights.safetensors."""
    import distae
    from distae.models.export import TOLERANCE, difference, samples
    from distae.models.serialization import write_sae_lens

    write_sae_lens(run.saved, folder)
    (given,) = samples(run.model, 7)
    found = difference(distae.load(folder).to(run.device).encode(given.flatten(1)), run.model.encode(given))
    return f"cfg.json and sae_weights.safetensors, for SAE.load_from_disk; {_agreed(folder, 'codes', found, TOLERANCE)}"


def _agreed(folder: Path, what: str, found: float, most: float) -> str:
    """How much `what` of the folder's model differs from the run's. Raises TrainingError where that is not at most `most`."""
    if not found <= most:
        raise TrainingError(f"{folder} is not the model that was written: {what} differ by {found:.2g}; at most {most}")
    return f"{what} differ on random input by up to {found:.1g}"


def _latents(run: Trained) -> tuple[float, float | None]:
    """Scaling and shift factor of the codes: of training samples, or those in a folder of diffusers. All ranks together."""
    from distae.config.evaluation import EvaluationConfig
    from distae.config.models import diffusers
    from distae.evaluation.latent_space import scaling_factor
    from distae.evaluation.metrics import Skip
    from distae.models.diffusers import exported

    exported(run.saved.model, 1.0, None)  # what cannot be expressed is an error before samples are read
    if (run.run / diffusers.WEIGHTS).is_file() and not run.names_data and run.options.split is None:
        found = diffusers.read(run.run)
        return found.scaling_factor or 1.0, found.shift_factor
    run.options.split = run.options.split or "train"
    evaluation = run.evaluation(EvaluationConfig())
    try:
        return scaling_factor(evaluation).value, None
    except Skip as why:
        raise UserError(f"--format diffusers: no scaling factor of the codes: {why}") from why
    finally:
        evaluation.close()


def _diffusers_folder(run: Trained, folder: Path, scaling_factor: float, shift_factor: float | None) -> str:
    """config.json and diffusion_pytorch_model.safetensors."""
    from distae.models.export import TOLERANCE, difference, samples
    from distae.models.inference import Model
    from distae.models.serialization import load_saved, write_diffusers

    write_diffusers(run.saved, folder, scaling_factor, shift_factor)
    (given,) = samples(run.model, 7)
    written = Model(load_saved(folder).model, run.saved.transform).to(run.device)
    found = difference(written.reconstruct(given), run.model.reconstruct(given))
    about = f"for images in [-1, 1], scaling factor {scaling_factor:.5g}; {_agreed(folder, 'reconstructions', found, TOLERANCE)}"
    return f"config.json and diffusion_pytorch_model.safetensors, {about}"


def _timm_folder(run: Trained, folder: Path) -> str:
    """config.json and model.safetensors of the encoder, checked against timm where it is installed."""
    from distae.models.serialization import write_timm

    write_timm(run.saved, folder)
    said = 'config.json and model.safetensors, for timm.create_model("local-dir:FOLDER", pretrained=True)'
    if find_spec("timm") is None:
        return f"{said}; not checked, as timm is not installed"
    return f"{said}; {_agreed(folder, 'features', _difference_from_timm(run, folder), TIMMS)}"


def _difference_from_timm(run: Trained, folder: Path) -> float:
    """Largest difference of features."""
    import timm
    import torch

    from distae.models.export import difference, samples

    x = run.saved.transform.apply(samples(run.model, 7)[0], torch.float32).cpu()
    model = run.saved.model.to("cpu").float()
    with torch.no_grad():
        mine, theirs = model.features(model.encode(x).z), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(x)
    return difference(theirs, mine)


def _graphs(run: Trained, folder: Path) -> str:
    """Graphs on the CPU, by their names."""
    from distae.models.export import write

    found = write(run.model.to("cpu"), folder, run.options.format)
    return ", ".join(f"{p.name} {p.stat().st_size} bytes" for p in sorted(folder.iterdir())) + (
        f"; differences from the model on random input up to {max(found.values()):.1g}"
    )


WRITERS: dict[str, Callable[..., str]] = {
    "safetensors": _model_folder, "hf": _hub_folder, "sae_lens": _sae_lens_folder, "diffusers": _diffusers_folder,
    "timm": _timm_folder, "onnx": _graphs, "torch_export": _graphs,
}  # fmt: skip


def model_card(run: Trained) -> str:
    """README.md as the Hugging Face hub reads it: what the model is, its data and figures, and how to load it."""
    about, model = run.saved.about, run.saved.model
    data, shape = about.data or {}, list(run.model.shape)
    first = (type(model).__doc__ or "").strip().splitlines()[0]
    parameters = sum(p.numel() for p in model.parameters())
    rows = [
        "---", "library_name: distae", "tags:", "- autoencoder", f"- {model.cfg.name}", "---", "",
        f"# {model.cfg.name} on {data.get('name', 'data')}", "", first, "",
        "| | |", "|---|---|",
        f"| samples | [N, {', '.join(map(str, shape))}], as in the training data (the transform is part of the model) |",
        f"| codes | {list(run.model.code_shape)} |", f"| parameters | {parameters:,} |", f"| step | {about.step} |",
        f"| likelihood | {model.cfg.likelihood} |", f"| network | {model.net.name} {list(model.net.widths)} |",
        "", "## Metrics", "", *_metrics(run), "", "## Use", "",
        "    pip install distae", "", "    import distae", "    model = distae.load(\"this folder\")",
        "    z = model.encode(x)        # x: an array or a tensor of samples", "    y = model.decode(z)", "",
    ]  # fmt: skip
    return "\n".join(rows)


def _metrics(run: Trained) -> list[str]:
    """The figures of `distae evaluate`, where they are of these weights."""
    from distae.runtime.files import read_bytes

    none = ["None were computed: `distae evaluate` writes them to the run's folder, and an export after that lists them."]
    try:
        figures = json.loads(read_bytes(run.run / "evaluation" / "metrics.json"))["figures"]
        lines = [
            f"| {f['metric']} | {f['value']:.5g} {f['unit']} | {', '.join(f'{k} {v:.5g}' for k, v in f['baselines'].items())} "
            f"| {f['protocol']['split']} |"
            for f in figures
            if f["protocol"]["weights"] == run.saved.checksum
        ]
    except (OSError, ValueError, LookupError, TypeError):
        return none
    return ["| metric | value | baselines | split |", "|---|---|---|---|", *lines] if lines else none
