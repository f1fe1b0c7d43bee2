"""Reports: everything here reads the JSON result of a run, and nothing else."""
