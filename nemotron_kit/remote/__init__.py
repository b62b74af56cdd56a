"""Another machine: ssh, the code that is sent there, and the agent that runs there."""
