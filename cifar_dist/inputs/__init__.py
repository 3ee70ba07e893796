"""What a step trains on: which images, augmented how. Pure functions of (seed, step)."""
