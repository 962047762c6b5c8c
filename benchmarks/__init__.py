"""mmattn against its peers, in one run: `python -m benchmarks.capture`, `.rollout`, `.overlay`, `.import_time`."""
