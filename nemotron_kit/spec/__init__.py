"""The values that launch, executors and worker pass on: plan, job, profile, paths, resources."""
