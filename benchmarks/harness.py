"""How every benchmark here measures: all ways side by side, round after round, in one process.

In each round every way runs once; the order is rotated, and every second round runs backwards, so that
no way always follows the same one. What is told is the median over rounds, and the median of the ratios
within rounds with the 95 % interval of that median (order statistics): a machine that becomes slower
half-way makes both parts of a ratio slower. CPU time is what counts on a shared machine; wall time is
told beside it, and it is what is judged where work runs on an accelerator.

Before the first round one large block is taken and freed: in any program that has opened a checkpoint the C
library keeps freed memory for the next pass, in a fresh one it may not, and then page faults are measured.

Peak memory is measured apart: one fresh process a way, which builds what the way needs, runs it once,
gives free memory back, and then runs it once more while the kernel keeps the high-water mark.
"""

import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from math import sqrt
from pathlib import Path
from typing import Literal

import torch

Run = Callable[[], object]
# Just under the largest block (32 MiB) that glibc learns its thresholds from.
_WARM_BYTES = 31 << 20
PACKAGES = ("torch", "timm", "transformers", "opencv-python", "matplotlib", "grad-cam", "numpy")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to do the job.

    Parameters
    ----------
    name
        As in the table.
    prepare
        Builds what it needs and returns the call that is timed; what that call returns is alive until the
        clock has stopped.
    against
        Name of the way that its ratio is taken to.
    """

    name: str
    prepare: Callable[[], Run]
    against: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size of the job, and the ways to do it."""

    name: str
    ways: tuple[Way, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one way must reach: `way` is at most `limit` times `against`, in CPU time or peak memory."""

    case: str
    way: str
    against: str
    limit: float
    of: Literal["time", "memory"] = "time"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Times of one way, seconds, one a round."""

    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table."""

    case: str
    way: str
    against: str
    cpu_ms: float
    wall_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    wall_ratio: float
    peak_mb: float | None
    held_mb: float | None


def main(*, title: str, module: str, cases: Callable[[Namespace], Sequence[Case]], targets: Sequence[Target]) -> None:
    """Read the options, measure, print the tables and what was reached."""
    options = parser(title).parse_args()
    set_threads(options.threads)
    found = [case for case in cases(options) if not options.only or options.only in case.name]
    if options.memory_of:
        print(memory_said(found, options))
        return
    machine = described(options)
    print(f"# {title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in machine.items()))
    lines: list[Line] = []
    for case in found:
        new = measured(case, module=module, options=options)
        lines += new
        print("\n" + table(new), flush=True)
    said = [judged(target, lines) for target in targets if any(line.case == target.case for line in lines)]
    print("\n" + "\n".join(said))
    if options.json:
        record = {"title": title, "machine": machine, "lines": [asdict(line) for line in lines], "targets": said}
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parser(title: str) -> ArgumentParser:
    """Return the options that every benchmark has."""
    found = ArgumentParser(description=title)
    found.add_argument("--rounds", type=int, default=30, help="how often each way runs (30)")
    found.add_argument("--threads", type=int, default=1, help="threads of torch and OpenCV (1; 0: as they come)")
    found.add_argument("--only", default="", help="only the cases whose name holds this")
    found.add_argument("--json", default="", help="write everything measured to this file")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    found.add_argument("--tiny", action="store_true", help="the smallest sizes: to see that it works")
    found.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    found.add_argument("--memory-of", nargs=2, default=None, help="CASE WAY: what the fresh process of a way does")
    return found


def set_threads(count: int) -> None:
    """Set the threads of torch and OpenCV; 0 leaves them as they are."""
    if count:
        torch.set_num_threads(count)
        _opencv_threads(count)


def memory_said(cases: Sequence[Case], options: Namespace) -> str:
    """Return what the fresh process of one way says on standard output: its peak and held memory, as JSON."""
    case, way = options.memory_of
    chosen = next(way_ for case_ in cases if case_.name == case for way_ in case_.ways if way_.name == way)
    return json.dumps(_memory(chosen, options.device))


def measured(case: Case, *, module: str, options: Namespace) -> list[Line]:
    """Return the lines of one case: memory first, each way in a process of its own, then the interleaved rounds."""
    memory = {way.name: _memory_apart(module, case.name, way.name, options) for way in case.ways}
    times = interleaved({way.name: way.prepare() for way in case.ways}, rounds=options.rounds, device=options.device)
    return [_line(case.name, way, times, memory[way.name], options.device) for way in case.ways]


def interleaved(runs: dict[str, Run], *, rounds: int, device: str = "cpu") -> dict[str, Timed]:
    """Return the times of all runs, each once a round, in rotated order."""
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    torch.empty(_WARM_BYTES, dtype=torch.uint8).fill_(1)
    for run in runs.values():  # the first run of anything is not what users feel
        run()
    gc.collect()
    gc.freeze()  # so that the collections between runs look at what the runs left, not at all of torch
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in order if number % 2 else order[::-1]:
            gc.collect()
            _wait(device)
            started, started_cpu = time.perf_counter(), time.process_time()
            result = runs[name]()
            _wait(device)
            cpu[name].append(time.process_time() - started_cpu)
            wall[name].append(time.perf_counter() - started)
            del result
    return {name: Timed(cpu_s=tuple(cpu[name]), wall_s=tuple(wall[name])) for name in runs}


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the ends of its 95 % interval, from order statistics (no shape is assumed)."""
    ordered = sorted(values)
    reach = 0.98 * sqrt(len(ordered))
    low = max(0, int(len(ordered) / 2 - reach))
    return statistics.median(ordered), ordered[low], ordered[len(ordered) - 1 - low]


def table(lines: Sequence[Line]) -> str:
    """Return the lines of one case as a Markdown table."""
    head = f"| {lines[0].case} | CPU ms | ratio (95 %) | wall ms | ratio | to | peak MB | held MB |"
    rule = "|---" * 8 + "|"
    body = [
        f"| {line.way} | {line.cpu_ms:.4g} | {line.ratio:.3f} ({line.ratio_low:.3f} to {line.ratio_high:.3f}) "
        f"| {line.wall_ms:.4g} | {line.wall_ratio:.3f} | {line.against} | {_mb(line.peak_mb)} | {_mb(line.held_mb)} |"
        for line in lines
    ]
    return "\n".join([head, rule, *body])


def judged(target: Target, lines: Sequence[Line]) -> str:
    """Return one sentence: what was asked, what came out."""
    of = {line.way: line for line in lines if line.case == target.case}
    way, against = of[target.way], of[target.against]
    if target.of == "memory":
        if way.peak_mb is None or against.peak_mb is None:
            return f"- not measured: peak memory of {target.way}, {target.case}"
        found, wall = way.peak_mb / max(against.peak_mb, 1e-9), ""
    else:
        same = way.against == target.against
        found = way.ratio if same else way.cpu_ms / against.cpu_ms
        wall = f" (wall {way.wall_ratio if same else way.wall_ms / against.wall_ms:.4g})"
    state = "reached" if found <= target.limit else "MISSED"
    asked = f"{target.way} <= {target.limit:.4g} x {target.against}"
    return f"- {state}: {asked} in {target.of}, {target.case}: {found:.4g}{wall}"


def described(options: Namespace) -> dict[str, str]:
    """Return what a reader must know of the machine and the run."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "not known"
    found = {
        "processor": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": str(torch.get_num_threads()),
        "rounds": str(options.rounds),
        "load at the start (1, 5, 15 min)": load,
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _line(case: str, way: Way, times: dict[str, Timed], memory: dict[str, float], device: str) -> Line:
    own, base = times[way.name], times[way.against]
    judged_s = (own.wall_s, base.wall_s) if device == "cuda" else (own.cpu_s, base.cpu_s)
    ratio, low, high = median_interval([a / max(b, 1e-9) for a, b in zip(*judged_s, strict=True)])
    return Line(
        case=case,
        way=way.name,
        against=way.against,
        cpu_ms=1e3 * statistics.median(own.cpu_s),
        wall_ms=1e3 * statistics.median(own.wall_s),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        wall_ratio=statistics.median([a / max(b, 1e-9) for a, b in zip(own.wall_s, base.wall_s, strict=True)]),
        peak_mb=memory.get("peak_mb"),
        held_mb=memory.get("held_mb"),
    )


def _memory_apart(module: str, case: str, way: str, options: Namespace) -> dict[str, float]:
    """Return peak and held memory of one way, measured in a fresh process."""
    if options.no_memory:
        return {}
    command = [sys.executable, "-m", module, "--memory-of", case, way, "--device", options.device]
    command += ["--threads", str(options.threads)] + (["--tiny"] if options.tiny else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} in a process of its own failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _memory(way: Way, device: str) -> dict[str, float]:
    """Return what one run needs above what was there before, at its peak and for its result alone."""
    run = way.prepare()
    run()
    gc.collect()
    _give_back()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before_cuda = torch.cuda.memory_allocated()
        held = run()
        peak, kept = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        del held
        return {"peak_mb": (peak - before_cuda) / 1e6, "held_mb": (kept - before_cuda) / 1e6}
    marked = _mark()
    before = _status_kb("VmRSS")
    result = run()
    peak_kb = _status_kb("VmHWM") if marked else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gc.collect()
    _give_back()
    kept_kb = _status_kb("VmRSS")
    del result
    return {"peak_mb": (peak_kb - before) * 1024 / 1e6, "held_mb": (kept_kb - before) * 1024 / 1e6}


def _mark() -> bool:
    """Set the kernel's high-water mark back to what is used now (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status_kb(name: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1])


def _give_back() -> None:
    """Let the C library return what is free, so that it is paid for again, as in a fresh process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _opencv_threads(count: int) -> None:
    import cv2

    cv2.setNumThreads(count)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or "unknown"
    found = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return found[0] if found else platform.processor()


def _mb(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
