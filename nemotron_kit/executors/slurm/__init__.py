"""Slurm: the batch script, and the client that submits it and observes its jobs."""
