"""Step time, efficiency and goodput on up to 1,024 GPUs, predicted from what one GPU does, and checked by simulation.

    python benchmarks/scale_model.py --compute-ms 120 --parameters 100e6

The table is from closed forms; a simulation of the same step (buckets queue for the network during the backward pass, the slowest
rank delays the others) and of the same failures shows their error. A second table has the bytes that a GPU holds and sends by ddp,
fsdp and hsdp; tests/distributed/test_parity.py compares them with those of real processes. The last line is one JSON object.

Figures and where they come from:
- NVLink 4: "18x 4th Gen NVLink, 900GB/s", both directions of a GPU together, so 450 GB/s each (NVIDIA's H200 SXM in MLCommons'
  inference_results_v4.1, closed/NVIDIA/systems/H200-SXM-141GBx8_TRT_MaxQ.json; the H100 SXM has the same).
- InfiniBand: eight ConnectX-7 in a node, one to each GPU (DGX H100 User Guide, table "Network Modules"), of 400 Gb/s (NDR) each.
- Latencies of ring and tree, how they add up, and the protocols' shares of the bandwidth: the tables of NCCL's own tuner
  (NVIDIA/nccl, src/graph/tuning.cc, ncclTopoTuneModel, at 01afd20a).
- What an all-reduce reaches of the wires: 0.8, for a link of 25 GB/s carries 20 GB/s in packets of 128 bytes (S. Jeaugey of NCCL,
  NVIDIA/nccl-tests#149); copies between two H100 reach 380 of 450 GB/s (NVIDIA/nccl#1264). Taken for InfiniBand, too;
  nccl-tests on your machine gives yours.
- Failures, and the interval between saves: `distae.training.save_schedule`. Time lost to failures: Daly 2006 (Future Generation
  Computer Systems 22).
- DDP's buckets: 1 MiB, then 25 MiB (torch.nn.parallel.DistributedDataParallel, bucket_cap_mb).
"""

import argparse
import json
import math
import random
from dataclasses import dataclass
from statistics import NormalDist, fmean

from distae.training.save_schedule import GPU_HOURS_PER_FAILURE, best_interval

US, MIB, HOUR = 1e-6, 2**20, 3600.0
NVLINK, NIC = 450e9, 50e9
BUS_EFFICIENCY = 0.8
GPUS_PER_NODE = 8
FORWARD = 1 / 3
"""Share of the forward pass in the compute time; the backward pass costs twice as much."""


@dataclass(frozen=True)
class Job:
    """The speed of one GPU, and the costs of the cluster."""

    compute: float
    """Seconds of forward and backward on one GPU at its micro-batch."""
    parameters: float
    jitter: float
    """Standard deviation of a rank's compute time, relative."""
    staging: float
    """Bytes/s from a GPU to the host: while a save copies, it blocks the loop."""
    restart: float
    """Seconds from a failure to the first new step: requeue, imports, reading the checkpoint."""

    @property
    def buckets(self) -> list[float]:
        """Bytes of fp32 gradients in the order in which the backward pass makes them ready."""
        rest, sizes = 4 * self.parameters, list[float]()
        while rest > 0:
            sizes.append(min(rest, (25 if sizes else 1) * MIB))
            rest -= sizes[-1]
        return sizes

    @property
    def blocked(self) -> float:
        """Seconds for which a save blocks the loop: parameters and Adam's two moments, copied by every GPU."""
        return 12 * self.parameters / self.staging


def all_reduce(size: float, gpus: int) -> float:
    """Seconds for `size` bytes: the better of NCCL's ring (Simple) and tree (LL128)."""
    if gpus == 1:
        return 0.0
    nodes = -(-gpus // GPUS_PER_NODE)
    local = gpus // nodes
    bus = BUS_EFFICIENCY * (NVLINK if nodes == 1 else min(NVLINK, NIC * local))
    inter, steps = 2 * (nodes - 1), 2 * (gpus - 1)
    ring = 8.4 * US + (steps - inter) * 3.4 * US + inter * 9.6 * US + size * steps / gpus / bus
    tree_share = 0.9 * (7 / 9 if nodes == 1 else 0.915)
    tree = 4.4 * US + 2 * ((local - 1) * 1.2 + math.log2(nodes) * 8.5) * US + 2 * size / (tree_share * bus)
    return min(ring, tree)


def step_time(job: Job, gpus: int) -> float:
    """Closed form: the slowest rank's compute, and the part of the all-reduces that its backward pass does not hide."""
    slowest = NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25)) if gpus > 1 else 0.0  # Blom 1958
    compute = job.compute * (1 + job.jitter * slowest)
    times = [all_reduce(b, gpus) for b in job.buckets]
    until_first = compute * (1 - FORWARD) * job.buckets[0] / (4 * job.parameters)
    return compute + max(times[-1], until_first + sum(times) - compute * (1 - FORWARD))


def simulated_step(job: Job, gpus: int, rng: random.Random) -> float:
    """One step: a bucket is reduced once the slowest rank has it, and the one before it is done."""
    compute = max(job.compute * rng.gauss(1, job.jitter) for _ in range(gpus))
    done = ready = 0.0
    for size in job.buckets:
        ready += size
        done = max(done, compute * (FORWARD + (1 - FORWARD) * ready / (4 * job.parameters))) + all_reduce(size, gpus)
    return max(done, compute)


def goodput(job: Job, mtbf: float, between: float) -> float:
    """Share of the time that contributes to the result (Daly); the rest is saving, restarting, and repeated steps."""
    return between / (mtbf * math.exp(job.restart / mtbf) * math.expm1((between + job.blocked) / mtbf))


def simulated_goodput(job: Job, mtbf: float, between: float, rng: random.Random, failures: int = 4000) -> float:
    """The same from failures drawn one by one, during restarts too."""
    useful = total = 0.0
    for _ in range(failures):
        life = rng.expovariate(1 / mtbf)
        total += life
        useful += max(0, math.floor((life - job.restart) / (between + job.blocked))) * between
    return useful / total


def exchanged(blocks: float, rest: float, whole: float, ranks: int, parts: int, micro_steps: int = 1) -> dict[str, float]:
    """Bytes of a step's collectives, each that of its whole tensor, from those of parameters: in blocks, outside, undivided.

    FSDP gathers blocks for the forward and again for the backward pass, the rest once, and sends gradients to their owners, in
    every micro-step. The groups of HSDP (`parts` < `ranks`) average their parts once a step, all ranks what is undivided. DDP has
    1 part.
    """
    if parts == 1:
        return {"all_gather": 0.0, "reduce_scatter": 0.0, "all_reduce": blocks + rest + whole}
    across = (blocks + rest) / parts if parts < ranks else 0.0
    gathered = micro_steps * (2 * blocks + rest)
    return {"all_gather": gathered, "reduce_scatter": micro_steps * (blocks + rest), "all_reduce": across + whole}


def held(divided: float, whole: float, parts: int) -> float:
    """Bytes of parameters, gradients and Adam's two moments on a rank, from those of the parameters."""
    return 4 * (divided / parts + whole)


def ways(parameters: float, gpus: int, micro_steps: int) -> dict[str, dict[str, float]]:
    """What a GPU holds, and sends in a step by rings, to its group of parts and to other groups: GB of float32, all in blocks."""
    found = {}
    for way, parts in {"ddp": 1, "fsdp": gpus, "hsdp": GPUS_PER_NODE}.items():
        of, groups = exchanged(4 * parameters, 0.0, 0.0, gpus, parts, micro_steps), gpus // parts
        found[way] = {
            "held_gb": held(4 * parameters, 0.0, parts) / 1e9,
            "sent_in_group_gb": (of["all_gather"] + of["reduce_scatter"]) * (parts - 1) / parts / 1e9,
            "sent_across_gb": of["all_reduce"] * 2 * (groups - 1) / groups / 1e9,
        }
    return found


def row(job: Job, nodes: int, rng: random.Random) -> dict[str, float]:
    """The figures of one cluster size."""
    gpus = nodes * GPUS_PER_NODE
    mtbf, step = GPU_HOURS_PER_FAILURE * HOUR / gpus, step_time(job, gpus)
    between = best_interval(job.blocked, mtbf)
    share = goodput(job, mtbf, between)
    simulated = fmean(simulated_step(job, gpus, rng) for _ in range(200))
    return {
        "gpus": gpus, "step_ms": 1e3 * step, "simulated_step_ms": 1e3 * simulated, "efficiency": job.compute / step,
        "mtbf_hours": mtbf / HOUR, "save_every_minutes": between / 60, "save_every_steps": round(between / step),
        "goodput": share, "simulated_goodput": simulated_goodput(job, mtbf, between, rng), "total": share * job.compute / step,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compute-ms", type=float, default=120.0, help="measured forward and backward of one GPU, in ms")
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--jitter", type=float, default=0.01, help="relative standard deviation of a rank's compute time")
    parser.add_argument("--staging-gb", type=float, default=20.0, help="GB/s from GPU memory to pinned host memory")
    parser.add_argument("--restart-minutes", type=float, default=5.0)
    parser.add_argument("--micro-steps", type=int, default=1, help="--grad-accum-steps, of which fsdp and hsdp send more")
    args = parser.parse_args()
    job = Job(args.compute_ms / 1e3, args.parameters, args.jitter, args.staging_gb * 1e9, args.restart_minutes * 60)
    rng = random.Random(0)
    rows = [row(job, nodes, rng) for nodes in (1, 2, 4, 8, 16, 32, 64, 128)]
    print("  GPUs  step ms (simulated)  efficiency   MTBF h  save every       goodput (simulated)   of ideal")
    for r in rows:
        print(
            f"{r['gpus']:6.0f}  {r['step_ms']:7.1f} ({r['simulated_step_ms']:7.1f})  {r['efficiency']:10.3f} {r['mtbf_hours']:8.0f}"
            f"  {r['save_every_minutes']:4.1f} min {r['save_every_steps']:6.0f}  {r['goodput']:.4f} ({r['simulated_goodput']:.4f})"
            f"     {r['total']:.3f}"
        )
    parts = {r["gpus"]: ways(job.parameters, round(r["gpus"]), args.micro_steps) for r in rows}
    print("\n  GPUs  way   GB held  sent a step: to its group  to other groups")
    for gpus, by_way in parts.items():
        for way, gb in by_way.items():
            print(f"{gpus:6.0f}  {way:4}  {gb['held_gb']:7.3f}  {gb['sent_in_group_gb']:25.3f}  {gb['sent_across_gb']:15.3f}")
    print(json.dumps({"compute_ms": args.compute_ms, "parameters": args.parameters, "rows": rows, "ways": [*parts.values()]}))


if __name__ == "__main__":
    main()
