"""`python -m lynx_video` is the command `lynx-video`."""

from lynx_video.cli.main import main

if __name__ == "__main__":
    main()
