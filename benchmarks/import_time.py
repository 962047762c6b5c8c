"""What `import mmattn` costs: `python -m benchmarks.import_time [--rounds 30]`.

Fresh interpreters in turn, so that a slower moment hits all: torch alone, then `import mmattn` after torch, then
the doors themselves (`mmattn.attend`), which are loaded at their first use. To reach: the second at most 0.3 s
beyond the first. Inside each interpreter the clock runs from before the first import.
"""

import statistics
import subprocess
import sys
from argparse import ArgumentParser

WAYS = {
    "import torch": "import torch",
    "import torch, mmattn": "import torch, mmattn",
    "import torch, mmattn; mmattn.attend": "import torch, mmattn; mmattn.attend",
}
TO_REACH_S = 0.3


def seconds(code: str) -> float:
    """Return how long the code takes in a fresh interpreter."""
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Print the median of each way, and the median of what it takes beyond torch within a round."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    for code in WAYS.values():
        seconds(code)  # the files are in the system's cache from here on
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds):
        for name in list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]:
            taken[name].append(seconds(WAYS[name]))
    print(f"| {rounds} rounds | median s | beyond torch, s | to reach |\n|---|---|---|---|")
    alone = taken["import torch"]
    for name, values in taken.items():
        beyond = statistics.median(value - base for value, base in zip(values, alone, strict=True))
        aim = f"<= {TO_REACH_S}" if name == "import torch, mmattn" else ""
        print(f"| `{name}` | {statistics.median(values):.3f} | {beyond:.3f} | {aim} |")


if __name__ == "__main__":
    main()
