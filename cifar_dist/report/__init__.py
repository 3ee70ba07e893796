"""What people look at: a run's pictures and page, and the comparison of runs. Reads run folders, changes no number in them."""
