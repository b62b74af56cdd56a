"""A plan made real: on this machine in this process, under torchrun, or detached."""
