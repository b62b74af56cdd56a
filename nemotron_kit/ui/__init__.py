"""`nemotron ui`: a local, read-only dashboard of runs, sweeps, artifacts and their lineage; needs the extra `ui`."""
