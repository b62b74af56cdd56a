"""The engine of `hydra/launcher=nemo_run`: composes the jobs of a sweep, and runs them on this machine or a profile."""
