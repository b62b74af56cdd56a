"""Pure functions from record to record."""

from nemotron_kit.data_prep.record_transforms import (
    Message,
    OpenAIChatRecord,
    SftRecord,
    ShareGPTRecord,
    Transform,
    nemotron_rl,
    openai_chat,
    passthrough,
    rename,
    select,
    sft,
    sharegpt,
)

__all__ = [
    "Message",
    "OpenAIChatRecord",
    "SftRecord",
    "ShareGPTRecord",
    "Transform",
    "nemotron_rl",
    "openai_chat",
    "passthrough",
    "rename",
    "select",
    "sft",
    "sharegpt",
]
