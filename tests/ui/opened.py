"""`lynx-video ui` as a process of its own, and what a test does with its page."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 240.0


def wait_until(true, seconds=120.0):
    """What `true` says, once it says something."""
    end = time.monotonic() + seconds
    while not (said := true()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.02)
    return said


class Running:
    """`lynx-video ui` as a process, in an empty folder of its own."""

    def __init__(self, folder, *more):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self.temporary = folder.with_name(f"{folder.name}-temporary")
        self.temporary.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "lynx_video", "ui", "--port", "0", *more]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(one) for one in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(self.temporary)},
            )
        self.url = wait_until(self._address, START_SECONDS)

    def _address(self):
        said = self.log.read_text()
        assert self.process.poll() is None, said
        found = re.search(r"^(http://\S+) ", said, re.MULTILINE)
        return found and found[1] + "/"

    def stop(self):
        """Ask it to end; its exit code, and the folders of its own that it left in the temporary one."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(60), [file.name for file in self.temporary.glob("lynx-video-*")]


def drop(page, file):
    """Give the page a portrait, and wait for what it says of it."""
    page.set_input_files("#portrait input[type=file]", str(file))
    page.wait_for_selector("#right")
    return page


def clips_of(running):
    """The clips it made, oldest first."""
    return sorted(Path(running.folder, "clips").glob("*.mp4"))
