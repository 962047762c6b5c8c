"""What `import mmattn` costs beyond torch: `python -m benchmarks.import_time`.

Each round starts fresh interpreters, in turn: one that imports torch, one that imports torch and mmattn, and one
that also touches the doors (`mmattn.attend`), which loads the analysis and the schema, still no model library.
"""

import json
import statistics
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

LIMIT_S = 0.3
CODES = {
    "torch": "import torch",
    "torch, mmattn": "import torch, mmattn",
    "torch, mmattn, mmattn.attend": "import torch, mmattn; mmattn.attend",
}
_CLOCK = "import time; a = time.perf_counter(), time.process_time(); {code}; "
_SAY = "print(time.perf_counter() - a[0], time.process_time() - a[1])"


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="interpreters of each kind (30)")
    parser.add_argument("--json", default="", help="write the medians to this file")
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CODES}
    for number in range(options.rounds):
        for name in list(CODES) if number % 2 else list(CODES)[::-1]:
            times[name].append(_once(CODES[name]))
    wall = {name: statistics.median(one[0] for one in found) for name, found in times.items()}
    cpu = {name: statistics.median(one[1] for one in found) for name, found in times.items()}
    print("| imported | wall s | CPU s | beyond torch, wall s | beyond torch, CPU s |\n|---|---|---|---|---|")
    for name in CODES:
        more = f"{wall[name] - wall['torch']:.3f} | {cpu[name] - cpu['torch']:.3f}"
        print(f"| {name} | {wall[name]:.3f} | {cpu[name]:.3f} | {more} |")
    beyond = cpu["torch, mmattn"] - cpu["torch"]
    state = "reached" if beyond < LIMIT_S else "MISSED"
    print(f"\n- {state}: import mmattn beyond torch < {LIMIT_S} s: {beyond:.3f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"wall_s": wall, "cpu_s": cpu}, indent=1) + "\n", encoding="utf-8")


def _once(code: str) -> tuple[float, float]:
    command = [sys.executable, "-c", _CLOCK.format(code=code) + _SAY]
    wall, cpu = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(wall), float(cpu)


if __name__ == "__main__":
    main()
