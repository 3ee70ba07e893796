"""What this machine or job can do: one check a question, measured on every rank and judged on rank 0."""
