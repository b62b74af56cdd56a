"""From a composed config to a running job: inputs, plan, run folder, executor, and following what runs."""
