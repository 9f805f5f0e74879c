"""The reference's command, unchanged: python infer_lite.py --subject_image PORTRAIT --prompt TEXT_OR_FILE --seed 42.

As there, --guidance_scale_i does nothing: lite runs two passes. `lynx-video generate --model lynx-lite` runs three if asked.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("lynx_video") is None:  # not installed: the sources beside this file
    sys.path.insert(0, str(Path(__file__).parent / "src"))

from lynx_video.cli.main import main


def kept(arguments: list[str]) -> list[str]:
    """The arguments without --guidance_scale_i and its value."""
    found, rest = [], iter(arguments)
    for one in rest:
        if one.split("=")[0].replace("_", "-") != "--guidance-scale-i":
            found.append(one)
            continue
        value = one.partition("=")[2] or next(rest, "")
        if value != "none":
            print(f"warning: --guidance_scale_i {value} is ignored: lite runs two passes here.", file=sys.stderr, flush=True)
    return found


main(["generate", "--model", "lynx-lite", "--output-dir", "results_lite", *kept(sys.argv[1:])])
