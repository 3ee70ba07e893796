"""What a run writes and others read: its folder, its lines, its checkpoints."""
