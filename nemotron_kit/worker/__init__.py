"""What runs on the node: `python -P -m nemotron_kit.worker FOLDER`."""
