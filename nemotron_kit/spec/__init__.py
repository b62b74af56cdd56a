"""The values shared by launch, executors and worker: plan, job, profile, paths, resources."""

# More processes on one node are a slip, and starting them would not end.
MOST_PROCESSES = 1024
