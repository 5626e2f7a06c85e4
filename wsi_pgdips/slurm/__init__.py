"""A cohort under Slurm: which jobs, what their scripts say, what each of them does."""
