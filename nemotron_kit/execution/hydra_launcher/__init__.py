"""The engine of `hydra/launcher=nemo_run`: each job of a sweep in a process of its own, where its profile says."""
