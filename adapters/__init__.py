"""Model libraries to schema; installed as `mmattn.adapters` and found by entry point."""
