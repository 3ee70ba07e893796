"""Weights & Biases as a view of the run folder: a process beside training reads the record and sends it. Training never waits for it."""
