"""Searches over options: a space, its runs, their ranking."""
