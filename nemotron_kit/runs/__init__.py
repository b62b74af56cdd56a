"""The records of launches: one folder a run, one folder a job, one file a state transition."""
