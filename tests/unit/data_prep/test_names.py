"""The names that people import, and how little importing them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).parents[3]


def test_both_spellings_are_the_same_objects() -> None:
    import nemotron.data_prep
    import nemotron.data_prep.config
    from nemotron.data_prep import DataBlend, DataBlendsArtifact, DataPrepConfig, PerSplitConfig, run_data_prep

    import nemotron_kit.data_prep

    assert nemotron.data_prep.config.DataPrepConfig is DataPrepConfig is nemotron_kit.data_prep.DataPrepConfig
    assert run_data_prep is nemotron_kit.data_prep.run_data_prep
    assert DataBlendsArtifact.__name__ == "DataBlendsArtifact"
    assert (DataBlend.__name__, PerSplitConfig().valid_shards) == ("DataBlend", 1)
    assert all(getattr(nemotron_kit.data_prep, name) for name in nemotron_kit.data_prep.__all__)


def test_what_a_launch_imports_is_light() -> None:
    code = (
        "import sys, nemotron.recipes.nano3.stage0_pretrain.data_prep as recipe, nemotron_kit.data_prep.preflight\n"
        "import nemotron.recipes.nano3.stage1_sft.data_prep\n"
        "heavy = set('numpy tokenizers pyarrow pydantic rich torch jinja2 fsspec huggingface_hub'.split())\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tiny_tokenizer_holds_any_text_and_the_special_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(ROOT / "recipes" / "nano3" / "tokenizers" / "tiny" / "tokenizer.json"))
    text = "def f(x):\n\treturn  x  # Ünïcödé 日本語 🙂 12345\r\n\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    wanted = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
    assert [tokenizer.token_to_id(token) for token in wanted] == list(range(8))
