"""Where the user's document imports ArtifactInput from."""

from nemotron_kit.app import App, ArtifactInput, Command, Group

__all__ = ["App", "ArtifactInput", "Command", "Group"]
