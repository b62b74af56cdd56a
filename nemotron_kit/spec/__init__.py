"""The values shared by launch, executors and worker: plan, job, profile, paths, resources."""
