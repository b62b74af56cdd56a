"""What a job run in this process finds of Hydra: HydraConfig and the job's logging, as @hydra.main would leave them."""

from __future__ import annotations

from typing import Any


def enter_hydra(node: Any, job_folder: str) -> None:
    """Set HydraConfig from Hydra's composed node and configure logging; files go to the job's folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import configure_log
    from omegaconf import OmegaConf, open_dict, read_write

    full = OmegaConf.create({"hydra": node}, flags={"allow_objects": True})

    with read_write(full.hydra.runtime), open_dict(full.hydra.runtime):
        full.hydra.runtime.output_dir = job_folder
    HydraConfig.instance().set_config(full)
    configure_log(full.hydra.job_logging, full.hydra.verbose)
