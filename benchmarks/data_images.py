"""Images read per second: the loaders of image_folder and parquet against the decoder alone, torch, HF datasets and litdata.

    python benchmarks/data_images.py ../shared/data/photos/short_side_256
    python benchmarks/data_images.py FOLDER --size 224 --workers 2 --rounds 5

All decode the same files to squares of --size with --workers threads or processes; those whose package is missing are left out.
`rate` is images per second of wall time, over the decoder's own rate on one thread times the workers (at most the cores);
`per_cpu_second` is images per second of CPU time of all threads and processes, over the decoder's: use it on a shared machine.
Rounds interleave what is compared, and a figure is the [median, smallest, largest] of the rounds' ratios. Each file is there
--copies times under other names, or starting and ending the workers would count for more than reading. The last line is one JSON
object. litdata and parquet read files that are made of the same JPEG bytes before.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from distae.config import TrainConfig, build
from distae.data import Loader, Reading, load
from distae.data.decode import decode
from distae.noise import Noise

BATCH = 32
Run = Callable[[], int]


def decoder(files: list[Path], args: argparse.Namespace) -> Run:
    """The decoding function, in a loop, on this thread."""
    return lambda: sum(len(decode(file, "RGB", args.size)) // 3 for file in files)


def threads(files: list[Path], args: argparse.Namespace) -> Run:
    """The decoding function in a pool of threads that does nothing else."""
    parts = [files[at : at + BATCH] for at in range(0, len(files), BATCH)]
    pool = ThreadPoolExecutor(args.workers)
    return lambda: sum(pool.map(lambda part: decoder(part, args)(), parts))


def distae(files: list[Path], args: argparse.Namespace, stored: bool = False, **table: Any) -> Run:
    """Batches from the loader, read ahead by threads: of floating point values, or `stored` as bytes, as a GPU takes them."""
    table = {"name": "image_folder", "path": str(files[0].parent), "val_fraction": 0.0, "test_fraction": 0.0} | table
    split = load(build(TrainConfig, {"data": table | {"size": args.size}}).data)["train"]
    reading = Reading("streamed", args.workers, 4, args.workers)
    loader = Loader(split, "none", torch.device("cpu"), torch.float32, False, reading)

    def run() -> int:
        rows = [*torch.arange(len(split)).split(BATCH)]
        noise = Noise.seeded(0, BATCH)
        coming = loader.ahead(rows, lambda r: (r,))
        return sum(len((loader.reader.take(mine) if stored else loader.batch(mine, noise))[0]) for mine in coming)

    return run


def as_stored(files: list[Path], args: argparse.Namespace) -> Run:
    return distae(files, args, stored=True)


def parquet(files: list[Path], args: argparse.Namespace) -> Run:
    """The same from one Parquet file of the images' bytes, in row groups of 100."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(args.scratch) / "images.parquet"
    pq.write_table(pa.table({"image": [{"bytes": f.read_bytes(), "path": ""} for f in files]}), path, row_group_size=100)
    return distae(files, args, name="parquet", path=str(path))


def torch_loader(files: list[Path], args: argparse.Namespace) -> Run:
    """torch's DataLoader over a data set as torchvision's ImageFolder, whose files need not be in class folders."""
    from torch.utils.data import DataLoader

    loader = DataLoader(_Files(files, args.size), BATCH, num_workers=args.workers, persistent_workers=True)  # type: ignore[arg-type]
    return lambda: sum(len(batch) for batch in loader)


class _Files(torch.utils.data.Dataset[Any]):
    """As torchvision's ImageFolder with Resize, CenterCrop and ToTensor."""

    def __init__(self, files: list[Path], size: int) -> None:
        from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

        self.files, self.made = files, Compose([Resize(size), CenterCrop(size), ToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        with self.files[row].open("rb") as file:
            return self.made(Image.open(file).convert("RGB"))


def hf_datasets(files: list[Path], args: argparse.Namespace) -> Run:
    """Hugging Face datasets, with its images decoded in torch's DataLoader."""
    from datasets import Dataset, disable_progress_bars
    from datasets import Image as Decoded
    from torch.utils.data import DataLoader

    disable_progress_bars()
    made = _Files(files, args.size).made
    data = Dataset.from_dict({"image": [str(f) for f in files]}).cast_column("image", Decoded())
    data = data.with_transform(lambda rows: {"x": [made(image.convert("RGB")) for image in rows["image"]]})
    loader = DataLoader(data, BATCH, num_workers=args.workers, persistent_workers=True)
    return lambda: sum(len(batch["x"]) for batch in loader)


def litdata(files: list[Path], args: argparse.Namespace) -> Run:
    """litdata's streaming data set and loader, of shards on the local disk."""
    import io

    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = Path(args.scratch) / "litdata"
    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="8MB")
    for row, file in enumerate(files):
        writer[row] = file.read_bytes()
    writer.done()
    writer.merge()
    made = _Files(files, args.size).made

    class Shards(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return made(Image.open(io.BytesIO(super().__getitem__(index))).convert("RGB"))

    loader = StreamingDataLoader(Shards(str(folder)), batch_size=BATCH, num_workers=args.workers, persistent_workers=True)
    return lambda: sum(len(batch) for batch in loader)


RIVALS = {
    "decoder in threads": threads,
    "distae, bytes": as_stored,
    "distae": distae,
    "distae, parquet": parquet,
    "torch DataLoader": torch_loader,
    "datasets": hf_datasets,
    "litdata": litdata,
}


def prepared(files: list[Path], args: argparse.Namespace) -> Iterator[tuple[str, Run]]:
    for name, make in RIVALS.items():
        if name in ("datasets", "litdata") and importlib.util.find_spec(name) is None:
            print(f"{name}: not installed")
            continue
        yield name, make(files, args)


def linked(folder: Path, dest: Path, copies: int) -> list[Path]:
    """Links to each image of a folder, under `copies` names."""
    dest.mkdir()
    images = sorted(f for f in folder.resolve().rglob("*") if f.suffix.lower() in Image.registered_extensions())
    links = [dest / f"{n}_{copy}{file.suffix}" for copy in range(copies) for n, file in enumerate(images)]
    for link, file in zip(links, images * copies, strict=True):
        link.symlink_to(file)
    return links


def cpu_seconds() -> float:
    """CPU seconds of this process and its children, also of those that still run."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in child.read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def rates(run: Run, images: int) -> tuple[float, float]:
    """Images per second of wall time, and of CPU time."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    done = run()
    assert done == images, f"{done} of {images} images"
    return images / (time.perf_counter() - wall), images / (cpu_seconds() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cores = min(args.workers, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as args.scratch:
        files = linked(Path(args.folder), Path(args.scratch) / "images", args.copies)
        own, others = decoder(files, args), dict(prepared(files, args))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
        for _ in range(args.rounds + 1):  # the first starts workers and fills the page cache, and does not count
            wall, cpu = rates(own, len(files))
            for name, run in others.items():
                of_wall, of_cpu = rates(run, len(files))
                found[name].append((of_wall / (wall * cores), of_cpu / cpu))
    summary: dict[str, Any] = {"images": len(files), "size": args.size, "workers": args.workers, "cores": cores}
    for name, values in found.items():
        for what, ratios in zip(("rate", "per_cpu_second"), zip(*(values[1:] or values), strict=True), strict=True):
            summary.setdefault(name, {})[what] = [round(f(ratios), 3) for f in (statistics.median, min, max)]
    summary["decoder images per CPU second"] = round(cpu)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
