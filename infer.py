"""The reference's command, unchanged: python infer.py --subject_image PORTRAIT --prompt TEXT_OR_FILE --seed 42."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("lynx_video") is None:  # not installed: the sources beside this file
    sys.path.insert(0, str(Path(__file__).parent / "src"))

from lynx_video.cli.main import main

main(["generate", "--model", "lynx-full", *sys.argv[1:]])
