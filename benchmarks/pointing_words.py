"""Which way to link words and patches points at the right thing: `python -m benchmarks.pointing_words`.

Scenes that we compose say where everything is. On fresh seeds of the held-out split (backgrounds that training never
saw), with one, two and three things, each thing is asked for by its own prompt ("a dog") and by its word in a caption
of the whole scene, by every method of `mmattn.match` that the model admits: does the middle of the strongest patch lie
in the thing's box? Interactions are tried with other points and blocks beside the default. Beside it stand chance,
what a prompt costs, and what the model itself knows (`assets/training/clip_evaluate.py`).

Last come the photographs that the library ships, with boxes drawn by hand, and words that the model knows or never saw.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from assets.training.clip_evaluate import AMONG, retrieval, told, twins
from assets.training.compose import Composer
from benchmarks import harness, pointing_words_tables
from benchmarks.harness import Run
from benchmarks.pointing_links import Linking, Pairing, linkings, opened
from benchmarks.pointing_phrases import COUNTS, Scores, questions, tried
from benchmarks.pointing_words_photos import worded
from benchmarks.pointing_words_tables import Knows
from mmattn.errors import MmattnError

TITLE = "Pointing with words: does a word's peak lie in the right box?"
OURS = "mmattn:clip"
ALONE = "both towers alone"
PROMPTS = ("a dog", "a cat", "a car", "a tree", "a key", "an owl", "a rose", "a bus", "a book", "a crab")


def main() -> None:
    """Read the options, measure, print the tables and what was reached."""
    options = _options()
    harness.set_threads(options.threads)
    pairing = opened(options.model)
    ways, refused = linkings(pairing)
    ways = ways[:: len(ways) - 1] if options.tiny else ways
    machine = harness.described(options)
    print(f"# {TITLE}\n\n" + "\n".join(f"- {name}: {value}" for name, value in machine.items()))
    print(
        f"- model: {pairing.name}, {pairing.size_px} px\n- scenes: {options.scenes} of each kind a seed, with clutter"
    )
    print(f"- seeds: {options.seeds}\n- in brackets: 95 % intervals (Wilson's), counted in scenes")
    print("\n".join(f"- {name}: {reason}" for name, reason in refused.items()) + "\n" * bool(refused), flush=True)
    composer = Composer("held-out", size_px=pairing.size_px)
    found = pointed(pairing, ways, composer, options)
    print(pointing_words_tables.table(found) + "\n", flush=True)
    knows = [known(pairing, composer, seed=seed, count=options.known) for seed in options.seeds]
    print(pointing_words_tables.known(knows, count=options.known) + "\n", flush=True)
    photos = worded(pairing, ways)
    print(photos.table() + "\n\n" + photos.warning() + "\n", flush=True)
    per_prompt = times(pairing, ways, options)
    print("In short: peak in the right box by a word's own prompt / by the word in a caption of the scene.\n")
    print(
        pointing_words_tables.short(found, per_prompt_ms=per_prompt, photos=photos.counts(), by_chance=photos.chance())
        + f"\n\nBoth towers alone: {per_prompt[ALONE]:.0f} ms a prompt, of {len(PROMPTS)} with one picture.\n"
    )
    judged = pointing_words_tables.judged(found, knows)
    print("\n".join(judged))
    if options.json:
        record = {
            "title": TITLE,
            "machine": machine,
            "model": pairing.name,
            "scenes": options.scenes,
            "seeds": options.seeds,
            "refused": refused,
            "pointed": asdict(found),
            "knows": [asdict(each) for each in knows],
            "photographs": photos.record(),
            "per_prompt_ms": per_prompt,
            "targets": judged,
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def pointed(
    pairing: Pairing, ways: Sequence[Linking], composer: Composer, options: Namespace
) -> pointing_words_tables.Pointed:
    """Return what all ways find on scenes with one, two and three things, seed by seed."""
    found: dict[int, dict[str, list[list[Scores]]]] = {}
    for things in COUNTS:
        found[things] = {way.name: [] for way in ways}
        for seed in options.seeds:
            asked = questions(composer, things=things, seed=seed, count=options.scenes)
            for name, scores in tried(pairing, ways, asked).items():
                found[things][name].append(scores)
            print(f"{COUNTS[things]}, seed {seed}: done", file=sys.stderr, flush=True)
    return pointing_words_tables.pointed(found)


def known(pairing: Pairing, composer: Composer, *, seed: int, count: int) -> Knows:
    """Return what the model itself knows of so many scenes, in batches of 64 that compete."""
    scenes, said = told(composer, seed=seed, count=count, least=1)
    shares = [retrieval(pairing.model, scenes[at : at + AMONG], said[at : at + AMONG]) for at in range(0, count, AMONG)]
    caption_of_scene, scene_of_caption, *_ = np.mean(shares, axis=0).tolist()
    left_right, above_below = twins(pairing.model, composer, seed=seed + 1, count=count)
    return Knows(
        seed=seed,
        caption_of_scene=caption_of_scene,
        scene_of_caption=scene_of_caption,
        left_right=left_right,
        above_below=above_below,
    )


def times(pairing: Pairing, ways: Sequence[Linking], options: Namespace) -> dict[str, float]:
    """Return what a prompt costs by each way and by both towers alone, in ms of CPU: ten with one picture, by ten."""
    side = pairing.size_px
    picture = np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)
    runs: dict[str, Run] = {way.name: partial(pairing.match, picture, PROMPTS, by=way) for way in ways}
    runs[ALONE] = lambda: pairing.cosines([picture], PROMPTS)
    timed = harness.interleaved(runs, rounds=options.rounds)
    return {name: 1e3 * median(one.cpu_s) / len(PROMPTS) for name, one in timed.items()}


def _options() -> Namespace:
    parser = harness.parser(TITLE)
    parser.set_defaults(rounds=10, device="cpu")
    parser.add_argument("--model", default=OURS, help=f"a CLIP of the words of our scenes ({OURS})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="fresh ones (101 102 103)")
    parser.add_argument(
        "--scenes", type=int, default=32, help="with one, two and three things each, for each seed (32)"
    )
    parser.add_argument(
        "--known", type=int, default=512, help="scenes a seed for what the model knows, 64 at once (512)"
    )
    options = parser.parse_args()
    if options.scenes < 1 or options.known < AMONG or options.known % AMONG:
        parser.error(f"--scenes {options.scenes} --known {options.known}: at least one, and a multiple of {AMONG}")
    if options.tiny:
        options.scenes, options.known, options.seeds = 1, AMONG, options.seeds[:1]
    return options


if __name__ == "__main__":
    try:
        main()
    except MmattnError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
