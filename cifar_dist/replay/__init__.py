"""Steps of a recorded run, done again from its checkpoints: whether they give the same bits, and where two runs part."""
