"""The declarations of commands, under the name that the reference's recipes import."""

from nemotron_kit.app import App, ArtifactInput, Command, Group

__all__ = ["App", "ArtifactInput", "Command", "Group"]
