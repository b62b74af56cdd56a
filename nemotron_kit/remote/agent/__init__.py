"""The agent: what runs on a job's target machine. Standard library only, so that it can be sent there."""
