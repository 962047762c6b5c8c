"""Which reading of attention points at the right thing: `python -m benchmarks.pointing`.

Scenes that we compose say where everything is. On fresh seeds of the held-out split (backgrounds that training never
saw), with clutter and without, every reading that mmattn has is asked: does the middle of its strongest patch lie in
the right box (`single`: scenes with one thing; `target`: two or three things, each by name), and how much of the map
lies in it? Beside it stand chance, what a picture costs against the forward pass alone, and what the model itself
knows. A reading that knows no target gives one map for all of them.

The best head of the last layer is chosen on a seed of its own (`--tuning-seed`) and reported on the fresh ones;
nothing else is chosen.

Last come the photographs that the library ships, with boxes drawn by hand: the model of the scenes knows nothing of
photographs. A model without class logits of the things (`--model mmattn:dinov2-small`) is read without a target only.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import mmattn
from assets.training.compose import Composer
from assets.training.evaluate import evaluate
from benchmarks import harness, pointing_tables
from benchmarks.harness import Case, Run, Way
from benchmarks.pointing_photographs import photographed
from benchmarks.pointing_readings import OURS, Reading, Subject, heads_of_last, opened, readings
from benchmarks.pointing_tables import Part, Seeds
from benchmarks.pointing_trials import Trial, singles, targets, tried
from mmattn.errors import MmattnError

TITLE = "Pointing: does a reading's peak lie in the right box?"
FORWARD, ATTEND = "forward pass alone", "mmattn.attend alone"


def main() -> None:
    """Read the options, measure, print the tables and what was reached."""
    options = _options()
    harness.set_threads(options.threads)
    subject = opened(options.model)
    case = timing(subject, options.device)
    if options.memory_of:
        print(harness.memory_said([case], options))
        return
    machine = harness.described(options)
    print(f"# {TITLE}\n\n" + "\n".join(f"- {name}: {value}" for name, value in machine.items()))
    head, said = best_head(subject, seed=options.tuning_seed, count=options.scenes)
    print(f"- model: {subject.name}, {subject.size_px} px\n- scenes: {options.scenes} a seed, seeds {options.seeds}")
    print("- in brackets: 95 % intervals, counted in scenes (of hits: Wilson's)")
    print(f"- {said}\n" + ("" if subject.names_things else f"- {_untargeted(subject)}\n"), flush=True)
    chosen = readings(subject, head=head)
    parts = [_part(subject, chosen, options, clutter=clutter) for clutter in (True, False)]
    for part in parts:
        print(pointing_tables.table(part) + "\n", flush=True)
    if subject.names_things:
        print(pointing_tables.known(parts) + "\n")
    photos = photographed(subject, chosen)
    print(photos.table() + "\n\n" + photos.warning() + "\n", flush=True)
    lines = []
    if options.only in case.name:
        lines = harness.measured(case, module="benchmarks.pointing", options=options)
        print(harness.table(lines) + "\n")
    print("In short, with clutter / without; time against the forward pass alone:\n")
    print(pointing_tables.short(parts, lines=lines, photos=photos.counts(), chance_photos=photos.chance()) + "\n")
    judged = pointing_tables.judged(parts) if subject.names_things else []
    print("\n".join(judged))
    if options.json:
        record = {
            "title": TITLE,
            "machine": machine,
            "model": subject.name,
            "scenes": options.scenes,
            "seeds": options.seeds,
            "best_head": said,
            "parts": [asdict(part) for part in parts],
            "photographs": photos.record(),
            "lines": [asdict(line) for line in lines],
            "targets": judged,
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def best_head(subject: Subject, *, seed: int, count: int) -> tuple[int, str]:
    """Return the head of the last layer that points best in scenes with one thing, and a phrase on it."""
    trials = singles(Composer("held-out", size_px=subject.size_px), seed=seed, count=count)
    heads = heads_of_last(subject.attend([trials[0].picture]))
    found = tried(subject, heads, trials)
    shares = [fmean(score.hit for scene in found[each.name] for score in scene) for each in heads]
    best = shares.index(max(shares))
    return best, f"best head of the last layer: {best} of 0 to {len(heads) - 1}, {shares[best]:.3f} on seed {seed}"


def timing(subject: Subject, device: str) -> Case:
    """Return the ways whose time and memory are measured: one picture, read by each door."""
    ways = [Way(name=FORWARD, prepare=partial(_forward, subject, device), against=FORWARD)]
    ways.append(Way(name=ATTEND, prepare=partial(_door, subject, None, device), against=FORWARD))
    for one in readings(subject, head=0):
        ways.append(Way(name=one.name, prepare=partial(_door, subject, one, device), against=FORWARD))
    return Case(name=f"{subject.name}, one picture of {subject.size_px} px", ways=tuple(ways))


def _part(subject: Subject, chosen: Sequence[Reading], options: Namespace, *, clutter: bool) -> Part:
    composer = Composer("held-out", clutter=clutter, size_px=subject.size_px)
    single: dict[str, Seeds] = {one.name: [] for one in chosen}
    target: dict[str, Seeds] = {one.name: [] for one in chosen}
    knows = []
    for seed in options.seeds:
        for jobs, ask in ((single, singles), (target, targets)):
            trials: list[Trial] = ask(composer, seed=seed, count=options.scenes)
            for name, scores in tried(subject, chosen, trials).items():
                jobs[name].append(scores)
        if subject.names_things:
            knows.append(evaluate(subject.model, composer, seed=seed, count=options.scenes))
        print(f"seed {seed}, {'with' if clutter else 'without'} clutter: done", file=sys.stderr, flush=True)
    return pointing_tables.part(clutter=clutter, single=single, target=target, knows=knows)


def _forward(subject: Subject, device: str) -> Run:
    model, picture = subject.model.to(device), _picture(subject, device)

    def run() -> Any:
        with torch.no_grad():
            return model(picture)

    return run


def _door(subject: Subject, one: Reading | None, device: str) -> Run:
    model, picture = subject.model.to(device), _picture(subject, device)
    if one is None:
        return lambda: mmattn.attend(model, inputs=picture)
    door = one.door
    return lambda: door(mmattn.attend(model, inputs=picture))


def _picture(subject: Subject, device: str) -> torch.Tensor:
    return torch.rand(1, 3, subject.size_px, subject.size_px, generator=torch.Generator().manual_seed(1)).to(device)


def _untargeted(subject: Subject) -> str:
    return (
        f"{subject.name} has no class logits of the things in the scenes: only readings that know no target are "
        "measured, and what it knows is not"
    )


def _options() -> Namespace:
    parser = harness.parser(TITLE)
    parser.add_argument("--model", default=OURS, help=f"as mmattn image takes it ({OURS})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="fresh ones (101 102 103)")
    parser.add_argument("--tuning-seed", type=int, default=2, help="on which the best head is chosen (2)")
    parser.add_argument("--scenes", type=int, default=512, help="of each kind, for each seed (512)")
    options = parser.parse_args()
    if options.tuning_seed in options.seeds:
        parser.error(f"seed {options.tuning_seed} is the one that the best head is chosen on: pass other --seeds")
    if options.scenes < 1:
        parser.error(f"--scenes {options.scenes}: at least one scene is needed")
    if options.memory_of:
        options.model = options.memory_of[0].split(", ")[0]
    if options.tiny:
        options.scenes, options.seeds = 4, options.seeds[:1]
    return options


if __name__ == "__main__":
    try:
        main()
    except MmattnError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
