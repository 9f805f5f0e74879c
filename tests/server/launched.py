"""`lynx-video serve` as processes of its own: started, asked, killed."""

import os
import re
import signal
import subprocess
import sys
import time

import httpx

START_SECONDS = 300.0


class Launched:
    """A running service. log: the file of its stderr, which goes on through restarts."""

    def __init__(self, data, *more, log=None):
        self.log = log or data.with_suffix(".log")
        begun = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "lynx_video", "serve", "--data", data, "--port", "0", *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log_file:
            self.process = subprocess.Popen([str(one) for one in command], stderr=log_file, env=environment)
        self.url = wait_for(lambda: self._address(begun))

    def _address(self, begun):
        assert self.process.poll() is None, self.log.read_text()
        match = re.search(r"on (http://\S+) ", self.log.read_bytes()[begun:].decode())
        return match and match[1]

    def ready(self):
        """Wait until a worker is; self."""
        wait_for(self._is_ready)
        return self

    def _is_ready(self):
        try:
            return httpx.get(f"{self.url}/ready", timeout=60).status_code == 200
        except httpx.TransportError:  # busy with its beginning
            return False

    def workers(self):
        """Process ids of its workers."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(one) for one in found.stdout.split()]

    def kill_all(self):
        """SIGKILL for all its processes at once, as when the machine goes down."""
        everyone = [self.process.pid, *self.workers()]
        for one in everyone:
            os.kill(one, signal.SIGKILL)
        self.process.wait()
        return everyone

    def stop(self):
        """SIGTERM; the exit code and the seconds that it took."""
        began = time.monotonic()
        self.process.terminate()
        return self.process.wait(60), time.monotonic() - began

    def close(self):
        """Leave nothing running."""
        if self.process.poll() is None:
            self.kill_all()


def wait_for(what, seconds=START_SECONDS):
    """What comes of asking again and again until it is true."""
    until = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.05)


def is_alive(pid):
    """Whether there is such a process, and no zombie of it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")
