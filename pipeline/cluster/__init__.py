"""Arrays of one stage: run in local processes or as a Slurm array, watched, then merged."""
