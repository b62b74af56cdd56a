"""A plain @hydra.main app over our primary config: prints what --cfg job shows for each command line in a JSON file."""

import contextlib
import gc
import io
import json
import os
import sys
from pathlib import Path

import hydra

from nemotron_kit.config.registration import conf_dir, register_recipes
from nemotron_kit.envfile import EnvFile

os.environ["HYDRA_FULL_ERROR"] = "1"
register_recipes(env=EnvFile())


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def app(_config):
    raise AssertionError("only --cfg is asked for")


def shown(words):
    sys.argv = ["app", *words, "--cfg", "job"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            app()
    except Exception as error:
        return f"error: {type(error).__name__}"
    return out.getvalue()


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000)  # nearly two hundred compositions: a seventh of their time was the search for garbage
    lines = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([shown(words) for words in lines]))
