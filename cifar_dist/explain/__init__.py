"""Where a run's time goes, and what would make it faster, tried before it is said."""
