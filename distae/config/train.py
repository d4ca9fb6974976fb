"""Every setting of a training run."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from distae.config.data import DataConfig, DigitsConfig
from distae.config.fields import Count, Fraction, Positive
from distae.config.models import ModelConfig, VAEConfig
from distae.config.names import SinkName
from distae.config.nets import MLPConfig, NetConfig
from distae.config.optim import ConstantConfig, OptimConfig, ScheduleConfig
from distae.config.parallel import ParallelConfig, ReplicateConfig


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """Stop when --best-metric no longer improves."""

    patience: Count | None = None
    """Evaluations without improvement before the run ends; off by default."""
    min_delta: Annotated[float, Meta(ge=0)] = 0.0
    """Smallest change for the better that counts as an improvement."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints for resuming."""

    mode: Literal["async", "sync"] = "async"
    """async copies the state and writes it in the background; sync waits for the disk."""
    keep_latest_k: Count = 2
    """Number of recent checkpoints to keep, besides the best by --best-metric."""
    mtbf_hours: Positive | None = None
    """Mean hours between failures of the job, for --save-every auto; by default 50,677 divided by the number of processes (the
    GPU hours per failure of Llama 3's training). Set it lower if jobs are also killed for other reasons."""


@dataclass(frozen=True, kw_only=True)
class DDPConfig:
    """How ranks exchange gradients (torch's DistributedDataParallel)."""

    bucket_mb: Positive = 25.0
    """Megabytes of gradients per all-reduce; the reduction of one bucket overlaps with the backward pass of the next."""
    compression: Literal["none", "fp16", "bf16"] = "none"
    """Send gradients in half precision: half the bytes, but results then depend on the world size."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an autoencoder on one process or many."""

    exclusive: ClassVar[tuple[tuple[str, str], ...]] = (("epochs", "steps"), ("optim.lr", "optim.blr"))
    """Settings of which a command line gives one: the other, if a file has it, is then left out."""
    common: ClassVar[dict[str, tuple[str, ...]]] = {
        "what is trained": ("model", "net", "data", "model.latent_dim", "model.likelihood"),
        "how": ("epochs", "steps", "global_batch_size", "optim.lr", "schedule", "precision", "compile", "device", "seed"),
        "the run": ("name", "run_dir", "fresh", "eval_every", "save_every", "best_metric", "tracking"),
    }
    """What `--help` shows."""
    removed: ClassVar[dict[str, tuple[Any, str]]] = {
        "noise": ("global", "noise no longer depends on the number of ranks"),
    }
    """Removed settings: the default, which is still accepted and stays in the run folder's hash, and why each was removed."""

    model: ModelConfig = field(default_factory=VAEConfig)
    """The variant to train."""
    net: NetConfig = field(default_factory=MLPConfig)
    """The encoder's and the decoder's network."""
    data: DataConfig = field(default_factory=DigitsConfig)
    """The data set."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ConstantConfig)
    """The learning rate over time."""
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ddp: DDPConfig = field(default_factory=DDPConfig)
    parallel: ParallelConfig = field(default_factory=ReplicateConfig)
    """How ranks hold the model: whole (ddp), or in parts, for models that do not fit a GPU."""

    epochs: Count | None = None
    """Passes over the training data; 100 if --steps is not given either."""
    steps: Count | None = None
    """Optimizer steps, instead of --epochs."""
    global_batch_size: Count = 128
    """Samples per optimizer step, over all ranks and accumulation steps: the result does not depend on their number."""
    grad_accum_steps: Count = 1
    """Number of micro-steps whose gradients are accumulated for one optimizer step."""
    eval_batch_size: Count = 512
    """Samples per evaluation chunk, over all ranks."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """bf16 and fp16 are autocast over fp32 parameters (fp16 with loss scaling); fp64 is for checks."""
    tf32: bool = False
    """Compute fp32 matrix products and convolutions on a GPU in TF32: 10 bits of mantissa, up to 8 times the speed."""
    channels_last: bool = False
    """Use torch's channels_last memory format: faster convolutions on GPUs with bf16 or fp16."""
    compile: bool = False
    """Compile forward, loss and backward with torch.compile: takes some seconds at the start; losses are equal up to rounding."""
    cuda_graphs: bool = False
    """With --compile on a GPU: replay them as CUDA graphs, for small models that are limited by kernel launches."""
    checkpoint_activations: bool = False
    """Keep only the inputs of the networks' blocks for the backward pass, and compute the rest again: less memory, more time."""
    ema: Fraction = 0.0
    """Decay of an exponential moving average of the parameters that evaluation and the exported model use; 0 is off."""
    best_metric: str = "val/loss"
    """Metric for the best checkpoint, plateau and early stop: a term of the loss, or a metric of distae evaluate, on the validation
    split. Higher is better where the metric says so."""
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """Seed of initial weights, the order of samples and noise."""

    log_every: Count = 20
    """Optimizer steps between two rows of training metrics."""
    eval_every: Count | None = None
    """Optimizer steps between two evaluations on the validation split; by default one epoch, but at least 50."""
    probe_every: Count | None = None
    """Optimizer steps between two probes of the codes on the validation split. Off by default."""
    probes: tuple[str, ...] = ("knn_accuracy", "pca_relative_error")
    """What is probed: metrics of distae evaluate, such as linear_probe. By default val/knn_accuracy, where the data have labels,
    and val/pca_relative_error, the squared error over that of PCA with as many dimensions."""
    profile: bool = False
    """Print how much time each phase of steps 11 to 60 takes, and write a torch.profiler trace to the run folder."""
    save_every: Literal["auto"] | Count = 500
    """Optimizer steps between two checkpoints; one is also saved at each new best and at the end. auto: the interval that
    minimises the expected lost time (Daly 2006), from the measured cost of a save and --checkpoint.mtbf-hours."""
    name: str | None = None
    """A readable name for the default run folder: runs/NAME_HASH."""
    run_dir: str | None = None
    """Run folder; by default runs/MODEL_DATA_HASH or runs/NAME_HASH, with a hash of the settings that define the result."""
    fresh: bool = False
    """Rename an existing run folder and start a new run, instead of resuming."""
    allow_changed_data: bool = False
    """Resume even if the data differ from those of the checkpoint."""
    export: Literal["best", "last"] = "best"
    """Which model a finished run leaves in `model/`: the best by --best-metric (needs a validation split), or the last."""
    init_from: str | None = None
    """Start from the weights of this finished run, or folder of SAELens or diffusers (weights only; optimizer and counters are
    reset)."""
    fork_from: str | None = None
    """Start from the newest checkpoint of this run: its full state, with the settings given here."""
    tracking: SinkName = "wandb"
    """Where rank 0 also sends rows and pictures: wandb (Weights & Biases), tensorboard (RUN/tensorboard), trackio, or none.
    metrics.jsonl, log.txt and images are always written."""
    progress: Literal["auto", "bar", "none"] = "auto"
    """auto: a progress bar and lines on a terminal, lines elsewhere; bar: only a bar, also in a notebook; none: no output.
    log.txt always has all lines."""
    report: bool = True
    """Write report.html at the end, as distae report does: curves, pictures, codes and settings in one file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses a GPU if there is one."""
    threads: Literal["auto"] | Count = "auto"
    """CPU threads per process; auto divides the cores among the node's processes. Bit-exact results on CPU need the same number."""
    timeout: Positive = 600.0
    """Seconds after which a collective fails that waits for a rank that is lost."""

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.optim.lr if self.optim.blr is None else self.optim.blr * self.global_batch_size / 256


MAY_CHANGE = frozenset(
    {
        "epochs",
        "steps",
        "grad_accum_steps",
        "log_every",
        "eval_every",
        "probe_every",
        "probes",
        "save_every",
        "name",
        "run_dir",
        "fresh",
        "export",
    }
    | {"tracking", "progress", "report", "device", "threads", "timeout", "profile", "data.root"}
    | {"data.storage", "data.workers", "data.prefetch", "data.on_error"}
    | {"model.lpips_weights", "model.lpips_backbone"}  # their checksum may not
    | {"allow_changed_data", "checkpoint.keep_latest_k", "checkpoint.mode", "checkpoint.mtbf_hours"}
    | {"parallel.name", "parallel.cpu_offload", "parallel.shard_size", "checkpoint_activations"}
)
"""Settings that may change on resume. All others define the result and are in the run folder's hash."""
OF_A_NODE = frozenset(
    {"data.root", "data.path", "data.test", "data.target", "data.storage", "data.workers", "data.prefetch", "threads", "fresh"}
    | {"model.lpips_weights", "model.lpips_backbone"}
)
"""Settings that may differ between ranks: the node's data and how it reads them, its cores, and --fresh, which is rank 0's."""
