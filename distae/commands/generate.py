"""distae generate RUN: new samples, ways from one sample to another, and what each dimension of the code does.

    distae generate runs/a --num 64
    distae generate runs/a --sampler gmm --components 20
    distae generate runs/a --interpolate 3 7 --traverse --animate

Everything goes to a folder: arrays in the units of the data (or .csv of tables), grids of images, animations, generate.json.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distae.commands.stored import lines_as_csv, npy, rows_as_csv
from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.errors import UserError
from distae.runtime.animations import check_format
from distae.runtime.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from distae.data import Split
    from distae.models import Codes

Files = dict[str, bytes | Iterator[bytes]]
"""Contents by name."""
FOLDER = "samples"
SAMPLERS = ("normal", "gmm", "two_stage", "vamp", "flow", "pixel")
FRAMES = 31
"""Of an animation, one way."""


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae generate") -> int:
    return serve(argv, arguments(prog), generate, reads_data=False)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    about = "New samples; with --interpolate or --traverse, these, and samples only if --num or --sampler is given too."
    parser = shared(prog, about, output=f"{FOLDER}/")
    parser.add_argument("--num", type=int, metavar="N", help="number of samples (default: 64)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the variant's own prior; others are fitted to training codes")
    parser.add_argument(
        "--label", type=int, metavar="L", help="label of the samples, of conditional variants (default: each in turn)"
    )
    parser.add_argument("--components", type=int, default=10, metavar="K", help="number of gaussians of gmm (default: 10)")
    parser.add_argument(
        "--fit-steps", type=int, default=2000, metavar="N", help="training steps of two_stage, flow and pixel (default: 2000)"
    )
    parser.add_argument(
        "--limit", type=int, default=10000, metavar="N", help="number of training samples to fit to (default: 10000)"
    )
    parser.add_argument(
        "--interpolate", nargs=2, type=int, metavar=("A", "B"), help="decode the path from sample A to B of the test split"
    )
    parser.add_argument("--traverse", action="store_true", help="vary each dimension of the code over 3 standard deviations")
    about = "also write the results of --interpolate and --traverse as"
    parser.add_argument("--animate", action="store_const", const="gif", help=f"{about} .gif")
    parser.add_argument("--mp4", dest="animate", action="store_const", const="mp4", help=f"{about} .mp4, by the program ffmpeg")
    return parser


def generate(run: Trained) -> None:
    """Compute and write what is asked for. Raises UserError, before anything is computed, on what does not fit the model."""
    from distae.evaluation.samplers import check_sampler, labels_of

    options, cfg = run.options, run.saved.model.cfg
    for name in ("num", "components", "fit_steps", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    walks = options.interpolate is not None or options.traverse
    if options.animate:
        option = "--mp4" if options.animate == "mp4" else "--animate"
        if not walks:
            raise UserError(f"{option} needs --interpolate or --traverse")
        check_format(options.animate, option)
    samples = not walks or options.num is not None or options.sampler is not None
    sampler = check_sampler(cfg, options.sampler) if samples else None
    labels_of(cfg, 1, options.label)
    if options.traverse and run.saved.model.num_codes is not None:
        raise UserError(f"--traverse: the codes of {cfg.name} are discrete; --interpolate works")
    folder = run.target(FOLDER)
    about: dict[str, Any] = {"run": str(run.run), "step": run.step, "seed": run.settings.seed}
    values = _sampled(run, sampler, about) if sampler else None
    names = run.on_main(lambda: _written(run, folder, values, about))
    run.say(f"wrote {', '.join(names)} to {folder}")


def _sampled(run: Trained, sampler: str, about: dict[str, Any]) -> "Tensor":
    """Samples in the model's values, `[n, *shape]`, of a sampler that is fitted first unless it is the model's own prior."""
    from distae.evaluation.samplers import Fit, fit, sample

    model, options, seed = run.model.module, run.options, run.settings.seed
    density, about["sampler"] = None, sampler
    if sampler != model.cfg.prior:
        density = fit(sampler, lambda: _codes(run, run.own_splits["train"]), Fit(seed, options.components, options.fit_steps))
        about["fit"] = density.about
    about["num"], about["label"] = options.num or 64, options.label
    shown = "".join(f", {name} {value}" for name, value in about.get("fit", {}).items())
    run.say(f"{about['num']} samples by {sampler}{shown or ', the prior of the model'}")
    return sample(model, density, about["num"], seed, options.label)


def _written(run: Trained, folder: Path, values: "Tensor | None", about: dict[str, Any]) -> list[str]:
    """Compute the rest and write all, on rank 0; returns the names of the files."""
    made = {} if values is None else _files(run, "samples", values)
    if run.options.interpolate:
        made |= _interpolation(run, about)
    if run.options.traverse:
        made |= _traversal(run, about)
    made["generate.json"] = json.dumps(about, indent=1).encode() + b"\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        write_atomically(folder / name, data)
    return [*made]


def _files(run: Trained, name: str, values: "Tensor", beside: Mapping[str, Sequence[Any]] | None = None) -> Files:
    """An array or a table of the model's values `[N, *shape]` in the units of the data, and a grid of images."""
    from distae.evaluation.pictures import is_image, png

    transform = run.saved.transform
    stored = transform.invert(values).numpy()
    files: Files = {f"{name}.csv": rows_as_csv(stored, transform, beside)} if transform.columns else {f"{name}.npy": npy(stored)}
    return files | ({f"{name}.png": png(values)} if is_image(run.model.module.shape) else {})


def _interpolation(run: Trained, about: dict[str, Any]) -> Files:
    """From one sample of the split to another. Raises UserError on numbers that it does not have."""
    import torch

    from distae.evaluation.walks import between, is_spherical
    from distae.noise import Noise, Rows

    model, ends = run.model.module, run.options.interpolate
    if odd := [number for number in ends if not 0 <= number < len(run.split)]:
        raise UserError(f"--interpolate {odd[0]}: the {run.split_name} samples are 0 to {len(run.split) - 1}")
    rows = torch.tensor(ends, device=run.loader.storage_device)
    x, label = run.loader.batch(rows, Noise(run.settings.seed, ("interpolate",), Rows(2), run.loader.device))
    with torch.no_grad():
        a, b = model.encode(x, label).z
    spherical, of = is_spherical(model), None if label is None else int(label[0])
    about["interpolate"] = {"split": run.split_name, "samples": ends, "path": "spherical" if spherical else "linear"}
    run.say(f"from {run.split_name} sample {ends[0]} to {ends[1]}, {about['interpolate']['path']}")

    def path(steps: int) -> "tuple[Tensor, Tensor]":
        share = torch.linspace(0, 1, steps, dtype=torch.float64)
        return share, _decoded(run, between(a, b, share.to(a.device), spherical), of)

    share, values = path(16)
    files = _files(run, "interpolation", values, {"share": share.tolist()})
    return files | (_animated(run, "interpolation", path(FRAMES)[1][:, None]) if run.options.animate else {})


def _traversal(run: Trained, about: dict[str, Any]) -> Files:
    """Each row of the grid is a dimension, from -3 to 3 standard deviations about the mean code; and a table of the dimensions."""
    import torch

    from distae.evaluation.samplers import posterior_samples
    from distae.evaluation.walks import REACH, dimensions

    codes = _codes(run, run.split)
    found = dimensions(run.model.module, codes, posterior_samples(codes, run.settings.seed))
    measure = "kl" if found.is_kl else "variance"
    about["traverse"] = {"split": run.split_name, "samples": len(codes.z), "sorted by": measure}
    run.say(f"{len(found.order)} dimensions by their {measure}, over the codes of {len(codes.z)} {run.split_name} samples")

    def walk(steps: int) -> "tuple[Tensor, Tensor]":
        sigma = torch.linspace(-REACH, REACH, steps, dtype=torch.float64)
        return sigma, _decoded(run, found.walk(sigma).flatten(0, 1), None)

    sigma, values = walk(16)
    beside = {"dimension": found.order.repeat_interleave(16).tolist(), "sigma": sigma.repeat(len(found.order)).tolist()}
    files = _files(run, "traversal", values, beside)
    columns = (found.order, found.importance, found.mean[found.order], found.std[found.order])
    table = zip(*(column.tolist() for column in columns), strict=True)
    files["dimensions.csv"] = lines_as_csv([("dimension", measure, "mean", "std"), *table])
    if run.options.animate:
        frames = walk(FRAMES)[1]
        files |= _animated(run, "traversal", frames.view(len(found.order), FRAMES, *frames.shape[1:]).transpose(0, 1))
    return files


def _animated(run: Trained, name: str, frames: "Tensor") -> Files:
    from distae.evaluation.pictures import animated, is_image

    kind = run.options.animate
    return {f"{name}.{kind}": animated(frames, kind)} if is_image(run.model.module.shape) else {}


def _codes(run: Trained, split: "Split") -> "Codes":
    """Of the first --limit samples, float64."""
    from distae.evaluation.exact import codes_of

    settings, loader = run.settings, run.loader_of(split)
    try:
        n = min(run.options.limit, len(split))
        return codes_of(run.model.module, loader, n, settings.eval_batch_size, settings.seed)
    finally:
        loader.close()


def _decoded(run: Trained, z: "Tensor", label: int | None) -> "Tensor":
    """The model's values `[N, *shape]` of codes `[N, D]`; conditional variants take `label`, else --label."""
    from distae.evaluation.walks import decoded

    return decoded(run.model.module, z, run.options.label if label is None else label)
