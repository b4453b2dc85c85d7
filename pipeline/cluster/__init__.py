"""An array of the same stage: in processes of this machine or as a Slurm array, watched, then put together."""
