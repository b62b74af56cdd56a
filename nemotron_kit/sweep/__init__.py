"""The engine of `hydra/launcher=nemo_run`: the jobs of a sweep, composed once and run where their profile says."""
