"""Slurm, as far as Python is concerned: the sbatch command, squeue's answer, and where a job's files are."""
