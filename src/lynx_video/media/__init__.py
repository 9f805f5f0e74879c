"""Files with pixels in them: pictures in and out, videos in and out, and the settings a video carries."""
