"""Speed in the rows of metrics, and --profile."""

import gzip
import json
import math
import re
import time
from collections import Counter
from dataclasses import replace
from unittest import mock

import pytest
import torch
from helpers import OF_EACH_KIND, fitted, fresh_trainer, metrics, settings, start
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from variants import SMALL as SMALL_VARIANTS

from distae.training.profiling import TIMERS, Timer, peak_flops

ROW = re.compile(r"^  (\D+?) +([\d.]+) ms +(-?[\d.]+)%$", re.MULTILINE)


def table(log: str) -> dict[str, tuple[float, float]]:
    return {name: (float(ms), float(share)) for name, ms, share in ROW.findall(log)}


def ranges(path) -> Counter[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return Counter(e["name"] for e in events if e.get("cat") == "user_annotation")


@pytest.mark.slow
def test_a_slow_log_lowers_the_rate_and_a_slow_evaluation_does_not(tmp_path):
    trainer = fresh_trainer(settings(log_every=2, eval_every=2, steps=12), tmp_path)
    slow = mock.Mock(side_effect=lambda row: time.sleep(0.03 if "train/loss" in row else 0.3))
    with mock.patch.object(trainer.tracker, "row", slow):
        trainer.fit()
    trainer.close()
    rows = [call.args[0] for call in slow.call_args_list]
    rates = [row["train/samples_per_second"] for row in rows if "train/loss" in row][1:]
    assert max(rates) < 2 * 24 / 0.03
    assert max(rates) > 2 * 24 / 0.3
    assert all(0 < row["train/data_wait_fraction"] < 1 for row in rows if "train/loss" in row)


def test_peak_memory_is_what_the_process_held(tmp_path):
    held = torch.ones(100 << 20, dtype=torch.uint8)
    fitted(settings(steps=1), tmp_path)
    (row,) = [r for r in metrics(tmp_path) if "train/loss" in r]
    assert held.nbytes < row["train/peak_memory_bytes"] < 64 << 30


def test_flops_are_those_of_the_layers(tmp_path):
    """2 per weight and sample forward, as many for weights' gradients, and for inputs' but the first layer's."""
    trainer = fresh_trainer(settings(grad_accum_steps=2, model={"name": "vae"}), tmp_path)
    rows = next(iter(trainer.sampler))
    before = [p.clone() for p in trainer.train_step.model.parameters()]
    flops = trainer.train_step.flops(rows)
    trainer.close()
    sizes = [m.weight.numel() for m in trainer.train_step.model.modules() if isinstance(m, nn.Linear)]
    assert flops == 24 * (6 * sum(sizes) - 2 * sizes[0])
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.train_step.model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(OF_EACH_KIND | {"contractive_ae", "rae_gp", "tokenizer", "vaegan"}))
def test_flops_are_counted_whatever_the_forward_pass_does(variant, tmp_path):
    """On the cards whose peak is known a run begins with it; torch's own counter fails where a forward pass takes gradients."""
    trainer = fresh_trainer(settings(model={"name": variant} | SMALL_VARIANTS.get(variant, {})), tmp_path)
    rows = next(iter(trainer.sampler))
    ours = trainer.train_step.flops(rows)
    if variant not in ("contractive_ae", "vaegan"):
        with FlopCounterMode(display=False) as counter:
            trainer.train_step._run_and_discard(rows, 1)
        assert ours == counter.get_total_flops()
    trainer.close()
    assert ours > 0


def test_peaks_are_known_by_the_devices_name():
    gpu = torch.device("cuda")
    for name, precision, tf32, peak in [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4e12), ("NVIDIA A100-SXM4-40GB", "fp32", True, 156e12),
        ("NVIDIA A100-SXM4-40GB", "fp32", False, 19.5e12), ("Tesla T4", "fp16", False, None), ("NVIDIA H200", "fp64", False, None),
    ]:  # fmt: skip
        with mock.patch("torch.cuda.get_device_name", return_value=name):
            assert peak_flops(gpu, precision, tf32) == peak
    assert peak_flops(torch.device("cpu"), "fp32", False) is None


def test_utilisation_is_flops_over_time_and_peak(tmp_path):
    with mock.patch("distae.training.metrics.peak_flops", return_value=1e9):
        trainer = fitted(settings(steps=4, log_every=2), tmp_path)
    assert trainer.logger.flops > 0
    for row in metrics(tmp_path):
        if "train/loss" in row:
            rate = row["train/samples_per_second"] / 24
            assert row["train/mfu_fraction"] == pytest.approx(trainer.logger.flops * rate / 1e9)


@pytest.mark.parametrize(("steps", "report"), [(8, "ended during"), (30, "profile of 20 steps"), (62, "trace of 2 steps")])
def test_a_run_that_ends_early_reports_what_was_measured(steps, report, tmp_path):
    fitted(replace(settings(steps=steps), profile=True), tmp_path)
    assert report in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_the_breakdown_adds_up_and_finds_what_is_slow(tmp_path):
    slow = mock.patch("distae.data.Loader.batch", autospec=True, side_effect=delayed(0.06))
    with slow:
        fitted(replace(settings(steps=70, log_every=10, eval_every=35), profile=True), tmp_path)
    log = (tmp_path / "log.txt").read_text()
    rows = table(log)
    assert [*rows] == [*TIMERS, "other"]
    assert sum(share for _, share in rows.values()) == pytest.approx(100, abs=0.5)
    assert rows["data"][0] == pytest.approx(60, rel=0.5)
    assert max(rows, key=lambda name: rows[name]) == "data"
    counts = ranges(tmp_path / "profile" / "trace_rank_0.json.gz")
    assert {name: counts[name] for name in ("forward", "backward", "optimizer")} == dict.fromkeys(
        ("forward", "backward", "optimizer"), 5
    )


def delayed(seconds):
    from distae.data import Loader

    batch = Loader.batch

    def wait(self, *args, **how):
        time.sleep(seconds)
        return batch(self, *args, **how)

    return wait


@pytest.mark.spawn
def test_two_ranks_report_the_exchange_and_leave_a_trace_each(tmp_path):
    argv = "--profile --steps 70 --tracking none --device cpu --threads 1 --data.limit 300 --net.hidden 8 --run-dir run"
    done = start(*argv.split(), nproc=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table((tmp_path / "run" / "log.txt").read_text())
    assert rows["gradient exchange, exposed"][0] > 0
    assert rows["backward"][0] > 0
    assert [ranges(tmp_path / "run" / "profile" / f"trace_rank_{r}.json.gz")["backward"] for r in (0, 1)] == [5, 5]
    assert "gpuGetDeviceCount" not in done.stderr


def test_phases_add_up():
    timer = Timer()
    moments = iter([1.0, 1.5, 4.0, 4.25])
    with mock.patch("time.perf_counter", side_effect=lambda: next(moments)):
        for _ in range(2):
            with timer:
                pass
    assert math.isclose(timer.seconds, 0.75)
