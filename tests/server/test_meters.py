"""What workers measured, added up in the database."""

from lynx_video.server.jobs import Queue
from lynx_video.server.meters import CLIP_SECONDS, ENDED, FAILURES, Meters, add_up, spread


def test_seconds_of_two_clips_add_up(database):
    meters = Meters(database, Queue(database=database))
    for seconds in ([0.5, 7.0], [7.5, 9000.0]):
        with database.write() as connection:
            tally = {(ENDED, "completed"): 2.0, (FAILURES, "no_face"): 1.0, **spread("clip_seconds", seconds, CLIP_SECONDS)}
            add_up(database, connection, tally)
    text = meters.page().decode()
    for line in (
        'lynx_video_clip_seconds_bucket{le="1"} 1.0',
        'lynx_video_clip_seconds_bucket{le="5"} 1.0',
        'lynx_video_clip_seconds_bucket{le="10"} 3.0',
        'lynx_video_clip_seconds_bucket{le="3600"} 3.0',
        'lynx_video_clip_seconds_bucket{le="+Inf"} 4.0',
        "lynx_video_clip_seconds_count 4.0",
        "lynx_video_clip_seconds_sum 9015.0",
        'lynx_video_jobs_ended_total{how="completed"} 4.0',
        'lynx_video_job_failures_total{code="no_face"} 2.0',
        "lynx_video_step_seconds_count 0.0",
    ):
        assert line in text, line
